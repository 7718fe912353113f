"""Planners side by side: what is measured, what is shown, and that cells cannot become markup."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser

import pyarrow as pa
import pytest
from rich.cells import cell_len

from vllm_relational import RelationalLLM
from vllm_relational.compare import planners as planning
from vllm_relational.compare.planners import NamedDependency, PlanComparison, compare_planners
from vllm_relational.compare.planners_html import icicle, write_page
from vllm_relational.compare.planners_text import dependency_lines, listed, render, shorten
from vllm_relational.plan.dependencies import Dependency
from vllm_relational.plan.objective import hit_tokens
from vllm_relational.records import EngineInfo, RelationalError

ROWS = [{"city": f"city {n % 3}", "text": f"a long text about {n % 6} " * 4, "n": n} for n in range(30)]
PLANNERS = ("original", "fixed", "tree")


def compare(rows=ROWS, planners=PLANNERS, prompt="{*}", budget=None) -> PlanComparison:
    info = EngineInfo("none", block_size=1)
    table = pa.Table.from_pylist(rows)
    return compare_planners(RelationalLLM(), table, prompt, planners, {"nulls": "keep"}, info, budget)


@pytest.fixture
def dependencies(monkeypatch):
    """What the search for dependencies finds."""
    found: list[Dependency] = []
    monkeypatch.setattr(planning, "find_dependencies", lambda batch: tuple(found))
    return found


# ------------------------------------------------------------------------------------------------------ comparing
def test_a_table_is_prepared_once_for_all_planners(monkeypatch):
    prepared = []
    prepare = RelationalLLM.prepare
    monkeypatch.setattr(RelationalLLM, "prepare", lambda *a, **k: prepared.append(1) or prepare(*a, **k))
    comparison = compare()
    assert [summary.planner for summary in comparison.summaries] == list(PLANNERS) and len(prepared) == 1
    assert all(summary.seconds > 0 for summary in comparison.summaries)


def test_the_plan_of_the_best_planner_is_kept():
    comparison = compare()
    assert comparison.best.hit_tokens == max(summary.hit_tokens for summary in comparison.summaries)
    assert comparison.planned.report.predicted.hit_tokens == comparison.best.hit_tokens
    hits = hit_tokens(comparison.planned.batch, comparison.planned.plan)
    assert hits + 29 * comparison.planned.header_tokens <= comparison.best.hit_tokens  # and values that begin alike


def test_distinct_rows_are_told_from_rows():
    assert "6 rows (2 distinct) x 1 column," in render(compare([{"a": "x"}, {"a": "y"}] * 3))
    assert "2 rows x 1 column," in render(compare([{"a": "x"}, {"a": "y"}]))


def test_the_first_of_equal_planners_is_the_best():
    assert compare(ROWS[:1], ("tree", "original")).best.planner == "tree"
    assert compare(ROWS[:1], ("original", "tree")).best.planner == "original"


def test_the_budget_goes_to_planners_that_search():
    assert len(compare(budget=0.0).summaries) == 3


@pytest.mark.parametrize(
    ("planners", "budget", "reason"),
    [
        (("fixed", "ggr"), 1.0, "--budget is for the planner tree: name it"),
        (PLANNERS, -1.0, "the budget is -1 seconds: give 0 to 86,400"),
        ((), None, "--planner names no planner"),
        (("fixed", "best"), None, "no order 'best'"),
    ],
)
def test_wrong_planners_and_budgets(planners, budget, reason):
    with pytest.raises(RelationalError, match=reason):
        compare(planners=planners, budget=budget)


def test_dependencies_are_named_and_a_share_is_never_rounded_up_to_exact(dependencies):
    dependencies += [Dependency((0,), (1,), 0.99999), Dependency((0, 1), (2,), 1.0)]
    for summary in compare().summaries:
        assert summary.dependencies == (
            NamedDependency(("city", "text"), ("n",), 1.0),
            NamedDependency(("city",), ("text",), 0.9999),
        )


# --------------------------------------------------------------------------------------------------- on a terminal
def saved_lines(text: str) -> list[int]:
    return [int(found.replace(",", "")) for found in re.findall(r"rows?  +([\d,]+)  +[\d.]+%$", text, re.MULTILINE)]


def test_the_lines_of_the_tree_add_up():
    comparison = compare()
    planned = comparison.planned
    saved = hit_tokens(planned.batch, planned.plan) + 29 * planned.header_tokens
    lines = saved_lines(render(comparison))
    assert 3 <= len(lines) <= 14 and sum(lines) == saved


def test_the_tree_names_what_is_shared(dependencies):
    dependencies.append(Dependency((0,), (1,), 0.994))
    text = render(compare())
    assert re.search(r'text = "a long text about \d a long.* 5 rows', text)
    assert "city -> text (99.4% of rows)" in text
    assert max(map(cell_len, text.splitlines())) <= 110


def test_markup_of_the_terminal_and_control_characters_are_shown_not_obeyed():
    rows = [{"[/red]": "[bold]\x7f\x9b31m", "名前": "値" * 200}] * 2
    text = render(compare(rows, prompt="{[/red]} {名前}"))
    assert "[/red]" in text and "[bold]" in text and "\x9b" not in text and "\x7f" not in text
    assert max(map(cell_len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    "rows",
    [
        [{"a": None, "b": None}] * 3,
        [{"a": "x"}],
        [{"a": str(n)} for n in range(20)],
        [{"a": "x" * 1_000_000}, {"a": "y" * 1_000_000}],
        [{f"c{column}": str(row % (column + 1)) for column in range(300)} for row in range(20)],
    ],
)
def test_odd_tables(rows, tmp_path):
    pytest.importorskip("plotly")
    comparison = compare(rows, ("original", "tree"))
    text = render(comparison)
    assert len(text.splitlines()) < 45 and max(map(cell_len, text.splitlines())) <= 110
    write_page(comparison, "t", tmp_path / "t.html")
    assert (tmp_path / "t.html").stat().st_size < 8_000_000


@pytest.mark.parametrize(
    ("dependency", "line"),
    [
        (NamedDependency(("host_id",), ("host_name", "host_since"), 1.0), "host_id -> host_name, host_since (exact)"),
        (NamedDependency(("city", "market"), (), 1.0), "city = market"),
        (NamedDependency(("city", "market"), (), 0.995), "city = market (99.5% of rows)"),
        (NamedDependency(("a", "b"), ("c",), 1.0), "a = b -> c (exact)"),
        (NamedDependency(("zip",), ("city",), 0.994), "zip -> city (99.4% of rows)"),
        (NamedDependency(("zip",), ("city",), 0.9999), "zip -> city (99.9% of rows)"),
    ],
)
def test_dependencies_in_words(dependency, line):
    assert dependency_lines([dependency]) == [line]


def test_many_dependencies_end_in_a_count():
    many = [NamedDependency(("a" * 50,), tuple(f"column {n}" for n in range(100)), 1.0)] * 13
    lines = dependency_lines(many)
    assert len(lines) == 11 and lines[-1] == "and 3 more" and max(map(len, lines)) <= 108
    assert re.search(r"and \d+ more \(exact\)$", lines[0])
    assert dependency_lines([]) == ["none"]


def test_lists_and_texts_are_cut_to_the_width():
    assert listed(["a", "b"], 10) == "a, b"
    assert listed(["aaaa"] * 10, 30, "field") == "aaaa, aaaa and 8 more fields"
    assert listed(["aaaa"] * 2, 5, "field") == "aaaa and 1 more field"
    assert shorten("a\nb", 10) == "a b" and shorten("abcdef", 4) == "abc…" and shorten("値値値", 4) == "値…"


# --------------------------------------------------------------------------------------------------------- a page
class Page(HTMLParser):
    """Tags, and texts outside scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags, self.texts, self.scripts = [""], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)

    def handle_data(self, data):
        (self.scripts if self.cdata_elem == "script" else self.texts).append(data)


def page_of(tmp_path, rows=ROWS, title="t.csv") -> Page:
    pytest.importorskip("plotly")
    write_page(compare(rows), title, tmp_path / "tree.html")
    return Page((tmp_path / "tree.html").read_text(encoding="utf-8"))


def test_the_page_says_what_the_plan_is_worth(tmp_path, dependencies):
    dependencies.append(Dependency((0,), (1,), 1.0))
    text = " ".join(page_of(tmp_path).texts)
    assert re.search(r"t\.csv: \d+\.\d% of the prompt tokens", text) and re.search(r"Planner \w+;", text)
    assert "city -> text (exact)" in text


def test_cells_names_and_titles_cannot_become_markup(tmp_path, dependencies):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    plain = page_of(tmp_path)
    page = page_of(tmp_path, [{evil: evil, "n": n} for n in range(3)], title=evil)
    assert page.tags == plain.tags  # nothing of the table opened a tag, in the page or in a script
    assert any(evil in text for text in page.texts)
    assert not any("<img" in script for script in page.scripts[-1:])


def test_plotly_shows_tags_in_cells_as_text():
    pytest.importorskip("plotly")
    comparison = compare([{"a": "<b>x</b> &amp;", "n": n} for n in range(3)])
    figure = figure_of(comparison)
    assert any("&lt;b&gt;x&lt;/b&gt; &amp;amp;" in hover for hover in figure["hovertext"])
    assert not any("<b>x" in text for text in (*figure["hovertext"], *figure["labels"]))


def figure_of(comparison: PlanComparison) -> dict:
    from vllm_relational.compare.planners_html import TREE_LIMITS
    from vllm_relational.plan.prefix_view import prefix_tree

    planned = comparison.planned
    nodes = prefix_tree(planned.batch, planned.plan, **TREE_LIMITS)
    return json.loads(icicle(planned, nodes).to_json())["data"][0]


def test_boxes_are_as_wide_as_their_tokens():
    pytest.importorskip("plotly")
    comparison = compare()
    figure = figure_of(comparison)
    inside = dict.fromkeys(figure["ids"], 0)
    for parent, tokens in zip(figure["parents"], figure["values"], strict=True):
        if parent:
            inside[parent] += tokens
    assert all(inside[place] <= tokens for place, tokens in zip(figure["ids"], figure["values"], strict=True))
    tokens = comparison.best.prompt_tokens
    tail = (tokens - figure["values"][0]) / comparison.best.rows
    assert tail == int(tail) > 0  # what closes each row is not drawn
    assert all(0 <= share <= 1 for share in figure["marker"]["colors"])


def test_a_large_table_gives_a_bounded_picture():
    pytest.importorskip("plotly")
    rows = [{"a": str(n % 700), "b": str(n % 2100), "c": str(n)} for n in range(6000)]
    assert 200 < len(figure_of(compare(rows, ("fixed",)))["ids"]) <= 2000


def test_the_page_is_the_same_every_time(tmp_path):
    assert page_of(tmp_path).scripts == page_of(tmp_path).scripts


def test_without_plotly_the_error_names_the_extra(monkeypatch, tmp_path):
    comparison = compare()
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(RelationalError, match=r"pip install 'vllm-relational\[report\]'"):
        write_page(comparison, "t", tmp_path / "tree.html")
    assert not (tmp_path / "tree.html").exists()
