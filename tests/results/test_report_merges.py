"""The report says how rows were merged and what an audit found, and nothing where there was neither."""

from __future__ import annotations

import dataclasses

from vllm_relational.records import AuditReport, CacheForecast, DedupReport, MergeExample, RunReport
from vllm_relational.results.agreement import agreement
from vllm_relational.results.report_text import render_text

PLAIN = RunReport(
    question="{a}?",
    model="m",
    planner="tree",
    field_order=("a",),
    num_rows=9,
    num_distinct=9,
    num_asked=9,
    num_resumed=0,
    num_failed=0,
    failures={},
    predicted=CacheForecast(100, 10),
    original=CacheForecast(100, 5),
    ceiling=0.5,
    token_counts="exact",
)
EXAMPLE = MergeExample(7, 3, "semantic", 0.9612, {"title": '"A [bold]dress[/bold]"'}, {"title": '"a dress\\u001b"'})
DEDUP = DedupReport("semantic", {"least similarity": "0.95"}, {"exact": 10, "semantic": 1234}, 2, (EXAMPLE,))


def test_exact_deduplication_has_no_section_of_its_own():
    assert render_text(dataclasses.replace(PLAIN, dedup=DedupReport("exact", {}, {"exact": 100}))) == render_text(PLAIN)


def test_merged_rows_with_an_example_to_judge_by():
    lines = render_text(dataclasses.replace(PLAIN, dedup=DEDUP)).splitlines()
    assert any(line.startswith("inherit an answer: close in meaning") and line.endswith("1,234") for line in lines)
    assert any(line.startswith("longer than the embedder reads") for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "row 7 <- row 3, similarity 0.961" in text
    assert 'title: "a dress\\u001b" takes the answer to "A [bold]dress[/bold]"' in text
    assert all(len(line) <= 100 for line in lines)


def test_an_audit_with_changes_failures_and_none_to_ask():
    samples = (
        agreement("rows asked, again in original order", 900, {1: "yes", 2: {"a": 1}, 3: "no"}, {1: "no", 2: {"a": 1}}),
        agreement("rows merged", 0, {}, {}),
    )
    text = render_text(dataclasses.replace(PLAIN, audit=AuditReport(0, samples, "the audit is incomplete: gone")))
    words = " ".join(text.split())
    assert "rows asked, again in original order 2 900 1 50.0% 9.5% to 90.5%" in words
    assert "rows merged 0 0 0 none" in words
    assert "row 1 'yes', again 'no'" in words and "no second answer 1" in words and "incomplete" in words


def test_cached_rows_are_counted():
    assert "found in the result cache" in render_text(dataclasses.replace(PLAIN, num_cached=3))
