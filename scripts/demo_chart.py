#!/usr/bin/env python3
"""Draw the last comparison of orders in a CSV file of ``vllm-relational bench --csv`` as bars in the terminal.

python scripts/demo_chart.py FILE
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

WIDTH = 48
Line = dict[str, str]


def last_comparison(path: Path) -> list[Line]:
    """The lines of the last run: those behind the last line of the first order. ``ValueError`` without any."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if not lines:
        raise ValueError(f"{path} holds no comparison")
    starts = [i for i, line in enumerate(lines) if line["order"] == lines[0]["order"]]
    return lines[starts[-1] :]


def chart(lines: Sequence[Line]) -> str:
    """Bars for seconds and for prompt tokens computed, one per order; the first order is the baseline."""
    rows = lines[0]["rows"]
    return "\n".join(
        [
            f"Seconds to answer {rows} rows",
            *_bars(lines, "ask_seconds", "{:,.1f}"),
            "",
            "Prompt tokens computed; the KV cache served the others",
            *_bars(lines, "computed_tokens", "{:,.0f}"),
        ]
    )


def _bars(lines: Sequence[Line], column: str, form: str) -> list[str]:
    values = [float(line[column]) for line in lines]
    width = max(len(line["order"]) for line in lines)
    bar = _scale(max(values))
    return [
        f"  {line['order']:<{width}}  {bar(value)} {form.format(value)}{_gain(values[0], value)}"
        for line, value in zip(lines, values, strict=True)
    ]


def _scale(most: float) -> Callable[[float], str]:
    return lambda value: "█" * max(1, round(WIDTH * value / most)) if most else ""


def _gain(baseline: float, value: float) -> str:
    return f"  ({baseline / value:.1f}x less)" if 0 < value < baseline else ""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: demo_chart.py FILE")
    print(chart(last_comparison(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
