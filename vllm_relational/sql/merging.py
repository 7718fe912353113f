"""Deduplication beyond equal inputs, the result cache and the audit, as one operator hands them to the pipeline.

A statement's settings are for all of its operators, and each reads fields of its own: rules go to the fields that an
operator has, and one without text to compare by meaning merges by its rules only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from vllm_relational.config import DedupMode, MergingOptions
from vllm_relational.records import Agreement, MergeExample, RunReport

ALL = "*"
ASKED, CACHED, RESUMED = "asked", "cached", "resumed"
# Steps whose merges are a matter of settings: what they gave is not what the model said of that input.
BEYOND_EXACT = {"normalized": "equal in normal form", "semantic": "close in meaning"}
SHOWN_EXAMPLES = 3


class Merging(MergingOptions):
    """The options of ``RelationalLLM.run`` about merging, as an operator's fields need them."""

    def options(self, records: pa.Table, aggregates: bool = False, embeds: bool = True) -> dict[str, Any]:
        """The options for an operator over these records.

        aggregates: it reads lists, which are never merged; embeds: False merges by rules at most, for a rough forecast.
        """
        kept = {"cache": self.cache, "audit": self.audit, "seed": self.seed}
        mode = self._mode(records, embeds)
        if aggregates or mode == "exact":
            return kept
        merged: dict[str, Any] = {"dedup": mode, "normalize": self._rules(records.column_names)}
        if mode == "semantic":
            compared = self._compared(records)
            merged |= {"similarity": self.similarity, "similar_columns": compared, "embedder": self.embedder}
        return kept | merged

    def _mode(self, records: pa.Table, embeds: bool) -> DedupMode:
        if self.dedup != "semantic" or (embeds and self._compared(records)):
            return self.dedup
        return "normalized" if self.normalize else "exact"

    def _rules(self, fields: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The rules of those fields; what is not named stays exact, as in ``run``."""
        if not self.normalize:
            return {}
        given = {name.casefold(): rules for name, rules in self.normalize.items()}
        own = {name: given[name.casefold()] for name in fields if name.casefold() in given}
        return {ALL: given.get(ALL, ("exact",)), **own}

    def _compared(self, records: pa.Table) -> tuple[str, ...]:
        """The fields to compare by meaning: those named, or those that hold text."""
        named = {name.casefold() for name in self.similar_columns}
        columns = zip(records.column_names, records.columns, strict=True)
        return tuple(name for name, column in columns if (name.casefold() in named if named else _holds_text(column)))

    def identity(self, fields: Sequence[str]) -> str:
        """A text that is equal for settings that merge the same inputs with these fields; '' where they merge none."""
        if self.dedup == "exact":
            return ""
        parts: list[Any] = [self.dedup, self._rules(fields)]
        if self.dedup == "semantic":
            named = {name.casefold() for name in self.similar_columns}
            compared = [name for name in fields if name.casefold() in named] if named else ["texts"]
            parts += [self.similarity, compared, _name_of(self.embedder), self.seed]
        return json.dumps(parts, sort_keys=True, ensure_ascii=False)

    def unread(self, fields: Iterable[str]) -> list[str]:
        """Columns that the settings name and that are none of these fields, of all questions of a statement."""
        known = {ALL, *(name.casefold() for name in fields)}
        named = [*self.normalize, *self.similar_columns]
        return [name for name in dict.fromkeys(named) if name.casefold() not in known]


def inherited(reports: Iterable[RunReport]) -> int:
    """How many inputs of these runs share the answer of one that is not equal to them."""
    found = (report.dedup.merged for report in reports if report.dedup is not None)
    return sum(merged.get(step, 0) for merged in found for step in BEYOND_EXACT)


def merge_lines(reports: Sequence[RunReport]) -> list[str]:
    """What deduplication did in these runs: inputs by step, and a few to judge by."""
    found = [report.dedup for report in reports if report.dedup is not None]
    lines = []
    for step, how in BEYOND_EXACT.items():
        if count := sum(dedup.merged.get(step, 0) for dedup in found):
            lines.append(f"merged: {count:,} inputs {how}")
    if too_long := sum(dedup.too_long for dedup in found):
        lines.append(f"merged: {too_long:,} inputs are longer than the embedder reads, none of them by meaning")
    return lines + [_example(example) for dedup in found for example in dedup.examples][:SHOWN_EXAMPLES]


def _example(example: MergeExample) -> str:
    close = "" if example.similarity is None else f" (similarity {example.similarity:.3f})"
    pairs = "; ".join(f"{text} <- {example.asked[name]}" for name, text in example.merged.items())
    return f"e.g. {pairs}{close}"


def audit_lines(reports: Iterable[RunReport]) -> list[str]:
    """What the audits of these runs found, a line each sample."""
    audits = [report.audit for report in reports if report.audit is not None]
    samples = [sample for audit in audits for sample in audit.samples if sample.num_asked]
    return [_share(sample) for sample in samples] + [f"audit: {audit.note}" for audit in audits if audit.note]


def _share(sample: Agreement) -> str:
    compared = sample.num_asked - sample.num_failed
    if sample.share is None:
        return f"audit, {sample.sample}: none of {sample.num_asked:,} gave an answer"
    interval = f"95% interval {sample.low:.1%} to {sample.high:.1%}"
    return f"audit, {sample.sample}: {sample.num_agreed:,} of {compared:,} the same ({sample.share:.1%}, {interval})"


def _name_of(embedder: Any) -> str:
    if isinstance(embedder, str | Path):
        return str(embedder)
    return str(getattr(embedder, "name", None) or getattr(embedder, "__qualname__", type(embedder).__qualname__))


def _holds_text(column: pa.ChunkedArray) -> bool:
    """Whether a column has a text that is no number: numbers are not compared by meaning."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type  # an ENUM
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return False
    return any(not _is_number(text) for text in column.unique().to_pylist() if text)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
