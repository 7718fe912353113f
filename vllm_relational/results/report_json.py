"""What a run did, as one JSON object: the fields of ``RunReport`` and the rates that follow from them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from vllm_relational.files.atomic import write_whole
from vllm_relational.records import RunReport


def write_json(report: RunReport, path: Path) -> None:
    """Write the report as a JSON file."""
    facts = dataclasses.asdict(report)
    facts["measured_hit_rate"], facts["rows_per_second"] = report.measured_hit_rate, report.rows_per_second
    for name in ("predicted", "original"):
        facts[name]["hit_rate"] = getattr(report, name).hit_rate
    if report.audit is not None:
        for sample, found in zip(facts["audit"]["samples"], report.audit.samples, strict=True):
            sample["share"] = found.share
    text = json.dumps(facts, ensure_ascii=False, indent=2) + "\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))  # a lone surrogate: as JSON escapes it
