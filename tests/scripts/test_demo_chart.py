"""The chart that the demo draws in the terminal."""

from __future__ import annotations

import demo_chart
import pytest

HEADER = "order,rows,ask_seconds,computed_tokens\n"


def lines_of(tmp_path, *lines):
    path = tmp_path / "bench.csv"
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines))
    return demo_chart.last_comparison(path)


def test_only_the_last_comparison_is_drawn(tmp_path):
    lines = lines_of(tmp_path, "original,9,1,1", "tree,9,1,1", "original,300,50,60000", "tree,300,12.5,20000")
    assert [line["rows"] for line in lines] == ["300", "300"]
    shown = demo_chart.chart(lines).splitlines()
    assert shown[0] == "Seconds to answer 300 rows"
    assert shown[1].count("█") == demo_chart.WIDTH and shown[1].endswith("50.0")
    assert shown[2].count("█") == demo_chart.WIDTH / 4 and shown[2].endswith("12.5  (4.0x less)")
    assert shown[-1].endswith("20,000  (3.0x less)")


def test_nothing_computed_and_a_slower_order_are_no_gain(tmp_path):
    shown = demo_chart.chart(lines_of(tmp_path, "original,2,1,0", "tree,2,2,0"))
    assert "less" not in shown


def test_a_file_without_lines_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no comparison"):
        lines_of(tmp_path)
