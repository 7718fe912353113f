"""The same question in several orders, side by side on one engine, each from a cold cache."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from vllm_relational.compare.provenance import code_version, machine
from vllm_relational.llm import RelationalLLM
from vllm_relational.query.prepared import Prepared
from vllm_relational.records import EngineInfo, QueryResult, RelationalError
from vllm_relational.terminal import tell

# Rows asked to measure the engine's speed before a comparison with a time budget.
SAMPLE_ROWS = 8
FIELDS = (
    "time", "commit", "machine", "model", "table", "question", "order", "rows", "distinct_rows", "prompt_tokens",
    "computed_tokens", "output_tokens", "hit_rate_measured", "hit_rate_predicted", "ceiling", "ask_seconds",
    "rows_per_second", "speed_up", "same_answers",
)  # fmt: skip
"""Columns of the CSV file of a comparison."""


@dataclass(frozen=True)
class Comparison:
    """Results of one question, one an order; the first order is the baseline."""

    results: tuple[QueryResult, ...]

    def speed_up(self, result: QueryResult) -> float:
        """Baseline seconds over this order's seconds, engine time only."""
        baseline: float = self.results[0].report.stage_seconds["ask"]
        seconds: float = result.report.stage_seconds["ask"]
        return baseline / max(seconds, 1e-9)

    def same_answers(self, result: QueryResult) -> float:
        """Share of rows with the baseline's answer: another field order is another prompt."""
        pairs = zip(self.results[0].answers, result.answers, strict=True)
        same: int = sum(a == b for a, b in pairs)
        return same / max(len(result.answers), 1)

    def render(self) -> str:
        """The comparison as a table for a terminal."""
        from rich.console import Console
        from rich.table import Table

        table = Table(
            "order", "seconds", "rows/s", "speed-up", "hit rate", "predicted", "computed tokens", "same answers"
        )
        for result in self.results:
            report = result.report
            table.add_row(
                report.planner,
                f"{report.stage_seconds['ask']:.1f}",
                f"{report.rows_per_second or 0:.2f}",
                f"{self.speed_up(result):.2f}x",
                "?" if report.measured_hit_rate is None else f"{report.measured_hit_rate:.1%}",
                f"{report.predicted.hit_rate:.1%}",
                _computed(result),
                f"{self.same_answers(result):.1%}",
            )
        out = io.StringIO()
        Console(file=out, width=110, markup=False, emoji=False, highlight=False).print(table)
        return out.getvalue().rstrip()

    def append_csv(self, path: Path, table: str) -> None:
        """Append one line an order, with what is needed to repeat it."""
        append_csv(path, [self._line(result, table) for result in self.results])

    def _line(self, result: QueryResult, table: str) -> dict[str, Any]:
        report = result.report
        hit_rate = report.measured_hit_rate
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": code_version(),
            "machine": machine(),
            "model": Path(report.model).name,
            "table": Path(table).name,
            "question": report.question,
            "order": report.planner,
            "rows": report.num_rows,
            "distinct_rows": report.num_distinct,
            "prompt_tokens": report.measured_prompt_tokens,
            "computed_tokens": _computed(result),
            "output_tokens": report.output_tokens,
            "hit_rate_measured": "" if hit_rate is None else round(hit_rate, 4),
            "hit_rate_predicted": round(report.predicted.hit_rate, 4),
            "ceiling": round(report.ceiling, 4),
            "ask_seconds": round(report.stage_seconds["ask"], 3),
            "rows_per_second": round(report.rows_per_second or 0, 3),
            "speed_up": round(self.speed_up(result), 3),
            "same_answers": round(self.same_answers(result), 4),
        }


def append_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append lines of the same fields, one or more, to a CSV file; a new file begins with the fields' names."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(lines)


def compare_orders(
    llm: RelationalLLM, table: pa.Table, prompt: str, orders: Sequence[str], options: Mapping[str, Any]
) -> Comparison:
    """Ask ``prompt`` once per order. The cache is emptied and one row is asked to warm the engine before each.

    Raises ``RelationalError`` when the engine cannot empty its cache: the comparison would be worth nothing.
    """
    results = []
    for order in orders:
        llm.run(table.slice(0, 1), prompt, order=order, progress=False, **options)
        _empty_cache(llm)
        tell(f"asking {table.num_rows:,} rows in the order {order}")
        results.append(llm.run(table, prompt, order=order, progress=True, **options))
    return Comparison(tuple(results))


def rows_within(
    llm: RelationalLLM,
    table: pa.Table,
    prompt: str,
    orders: Sequence[str],
    options: Mapping[str, Any],
    seconds: float,
) -> int:
    """How many of the first rows all ``orders`` together can answer in about ``seconds``, at least 2.

    The engine's speed is measured on a few rows from a cold cache; the plan says how many tokens more rows cost.
    """
    llm.run(table.slice(0, 1), prompt, progress=False, **options)
    _empty_cache(llm)
    report = llm.run(table.slice(0, SAMPLE_ROWS), prompt, progress=False, **options).report
    tokens = (report.measured_prompt_tokens or 0) - (report.measured_cached_tokens or 0)
    affordable = seconds * tokens / max(report.stage_seconds["ask"], 1e-9)
    prepared, info = llm.prepare(table, prompt, **options), llm.expected_engine()
    low, high = 2, table.num_rows
    while low < high:
        middle = (low + high + 1) // 2
        if _computed_tokens(prepared.first(middle), info, orders) <= affordable:
            low = middle
        else:
            high = middle - 1
    return low


def _computed_tokens(prepared: Prepared, info: EngineInfo, orders: Sequence[str]) -> int:
    return sum(prepared.plan(info, order).report.predicted.computed_tokens for order in orders)


def _empty_cache(llm: RelationalLLM) -> None:
    if not llm.reset_cache():
        raise RelationalError("this engine cannot empty its prefix cache, so orders cannot be compared on it")


def _computed(result: QueryResult) -> str:
    report = result.report
    if report.measured_prompt_tokens is None or report.measured_cached_tokens is None:
        return ""
    return str(report.measured_prompt_tokens - report.measured_cached_tokens)
