"""What the report says of merged rows and of the audit; both are left out where there is nothing to say."""

from __future__ import annotations

import json
from typing import Any

from vllm_relational.records import Agreement, AuditReport, DedupReport, MergeExample, RunReport
from vllm_relational.results.report_facts import Cells, Section, count, percent

STEPS = {"exact": "equal", "normalized": "equal in normal form", "semantic": "close in meaning"}
SHOWN_ANSWER = 60


def merge_sections(report: RunReport) -> list[Section]:
    """How rows were merged, a few of them, and what an audit found."""
    found = []
    if report.dedup is not None and report.dedup.mode != "exact":
        found.append(Section("Merged rows", (), dedup_facts(report.dedup)))
    if report.audit is not None:
        found.append(
            Section("Audit: same answers", ("rows", "of", "same", "share", "95% interval"), _shares(report.audit))
        )
        if notes := audit_notes(report.audit):
            found.append(Section("Audit: details", (), notes))
    return found


def dedup_facts(dedup: DedupReport) -> list[Cells]:
    """Settings, rows by the step that merged them, and examples to judge by."""
    facts: list[Cells] = list(dedup.settings.items())
    facts += [(f"inherit an answer: {STEPS[step]}", count(rows)) for step, rows in dedup.merged.items()]
    if dedup.too_long:
        facts.append(("longer than the embedder reads", f"{count(dedup.too_long)} rows, not merged by meaning"))
    return facts + [_example(example) for example in dedup.examples]


def _example(example: MergeExample) -> Cells:
    close = "" if example.similarity is None else f", similarity {example.similarity:.3f}"
    differ = [f"{name}: {example.merged[name]} takes the answer to {text}" for name, text in example.asked.items()]
    return f"  row {example.row} <- row {example.source_row}{close}", "; ".join(differ)


def _shares(audit: AuditReport) -> list[Cells]:
    return [_share(sample) for sample in audit.samples]


def _share(sample: Agreement) -> Cells:
    compared = sample.num_asked - sample.num_failed
    asked = (count(compared), count(sample.population), count(sample.num_agreed))
    if sample.share is None:
        return (sample.sample, *asked, "none", "")
    return (sample.sample, *asked, percent(sample.share), f"{percent(sample.low)} to {percent(sample.high)}")


def audit_notes(audit: AuditReport) -> list[Cells]:
    """What is not in the table of shares: rows without a second answer, examples, why it is incomplete."""
    notes: list[Cells] = [("incomplete", audit.note)] if audit.note else []
    for sample in audit.samples:
        if sample.num_failed:
            notes.append((f"{sample.sample}: no second answer", count(sample.num_failed)))
        if sample.changed:
            notes.append((sample.sample, "changed, e.g."))
        notes += [(f"  row {row}", f"{_shown(before)}, again {_shown(again)}") for row, before, again in sample.changed]
    return notes


def _shown(answer: Any) -> str:
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    text = " ".join(text.split())
    return repr(text if len(text) <= SHOWN_ANSWER else text[: SHOWN_ANSWER - 3] + "...")
