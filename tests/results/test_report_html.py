"""The HTML report is right, escaped and self-contained."""

import re
import sys
from html.parser import HTMLParser

import pytest

from vllm_relational.records import CacheForecast, RelationalError, RunReport
from vllm_relational.results.report_html import short, write_html


def make_report(**changes) -> RunReport:
    facts = {
        "question": "Is <script>alert('x')</script> positive? {comments}",
        "model": "some/<b>model</b>",
        "planner": "row_sort",
        "field_order": ("<i>description</i>", "comments"),
        "num_rows": 1300,
        "num_distinct": 1200,
        "num_asked": 1100,
        "num_resumed": 100,
        "num_failed": 1,
        "failures": {"<img src=x>": 1},
        "predicted": CacheForecast(100_000, 80_000),
        "original": CacheForecast(100_000, 10_000),
        "ceiling": 0.875,
        "token_counts": "exact",
        "measured_prompt_tokens": 100_000,
        "measured_cached_tokens": 75_000,
        "output_tokens": 2345,
        "stage_seconds": {"plan": 0.25, "<u>ask</u>": 1.0, "ask": 55.0},
    }
    return RunReport(**{**facts, **changes})


class Page(HTMLParser):
    """The tags of a page, and its texts outside ``<style>``."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        if data.strip() and self.tags[-1] != "style":
            self.texts.append(data.strip())


@pytest.fixture
def render(tmp_path):
    pytest.importorskip("matplotlib")

    def write_and_read(report: RunReport) -> Page:
        write_html(report, tmp_path / "report.html")
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write_and_read


def test_numbers_findings_and_charts(render):
    page = render(make_report())
    assert page.tags.count("svg") == 3
    for shown in ("3.60x", "75.0%", "80.0%", "10.0%", "87.5%", "25,000", "20,000", "90,000", "25K of 100K", "55.00"):
        assert shown in page.texts, shown
    assert "The hit rate is 75.0%; in original order 10.0%" in page.texts
    assert "25K of 100K prompt tokens are computed; in original order 90K" in page.texts
    assert "'ask' takes 97.8% of the time" in page.texts


def test_nothing_of_the_query_becomes_markup(render):
    page = render(make_report())
    assert not {"script", "b", "i", "u", "img"} & set(page.tags)
    assert "Is <script>alert('x')</script> positive? {comments}" in page.texts
    assert "<u>ask</u>" in page.texts


def test_the_page_asks_for_nothing_from_elsewhere(render):
    page = render(make_report())
    assert not re.findall(r"(?<!xmlns=\")(?<!xmlns:xlink=\")https?://", page.source)
    assert not {"link", "iframe", "object", "image"} & set(page.tags)
    assert "@import" not in page.source
    targets = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(target.startswith("#") for target in targets)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page.source))


def test_ids_are_unique_and_the_page_is_the_same_every_time(render):
    page = render(make_report())
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert render(make_report()).source == page.source


def test_charts_take_colour_and_font_from_the_page(render):
    source = render(make_report()).source
    assert "currentColor" in source
    assert "#010203" not in source
    assert "DejaVu" not in source
    assert "prefers-color-scheme: dark" in source


def test_dry_run(render):
    missing = {"measured_prompt_tokens": None, "measured_cached_tokens": None, "stage_seconds": {"plan": 0.1}}
    page = render(make_report(**missing, token_counts="estimated: 4 bytes a token"))
    assert "hit rate predicted (not measured: dry run)" in page.texts
    assert "Predicted token counts are not exact (estimated: 4 bytes a token)." in page.texts
    assert "measured" not in page.texts
    assert "None" not in page.source


def test_a_run_without_prompts_has_no_token_charts(render):
    nothing = CacheForecast(0, 0)
    page = render(make_report(predicted=nothing, original=nothing, measured_prompt_tokens=None, num_asked=0))
    assert page.tags.count("svg") == 1
    assert "No prompt was needed." in page.texts


def test_no_time_no_time_chart(render):
    assert render(make_report(stage_seconds={})).tags.count("svg") == 2


def test_missing_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RelationalError, match=r"pip install 'vllm-relational\[report\]'"):
        write_html(make_report(), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (999, "999"), (1000, "1K"), (18_900, "18.9K"), (999_400, "999K"), (1_500_000, "1.5M")],
)
def test_short_counts(number, shown):
    assert short(number) == shown
