"""What a run did, in words: the facts of a ``RunReport`` and their rendering for a terminal or a log.

The HTML report shows the same facts, so both always agree.
"""

from __future__ import annotations

import dataclasses
from io import StringIO

from rich.console import Console
from rich.table import Table

from vllm_relational.records import CacheForecast, RunReport
from vllm_relational.results.report_facts import Cells, Section, count, percent
from vllm_relational.results.report_merges import merge_sections
from vllm_relational.terminal import printable

WIDTH, LABEL_WIDTH = 100, 36
QUESTION_CHARACTERS = 240


def render_text(report: RunReport) -> str:
    """The report as plain text, at most 100 columns wide, without colour codes."""
    out = StringIO()
    console = Console(width=WIDTH, file=out, color_system=None, markup=False, emoji=False, highlight=False)
    console.print(headline(report))
    for section in sections(report):
        console.print()
        console.print(_table(section))
    if note := token_note(report):
        console.print(f"\n{note}")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def sections(report: RunReport) -> list[Section]:
    """All facts, in reading order."""
    found = [
        Section("Prompts", ("prompt tokens", "computed", "hit rate"), prompt_rows(report)),
        Section("Rows", (), row_facts(report)),
        *merge_sections(report),
        Section("Run", (), run_facts(report)),
    ]
    return [dataclasses.replace(section, rows=[_printable(row) for row in section.rows]) for section in found]


def _printable(row: Cells) -> Cells:
    """Cells hold names of models and columns, values and the words of servers."""
    return tuple(printable(cell) for cell in row)


# ---------------------------------------------------------------------------------------------------- conclusions
def headline(report: RunReport) -> str:
    """The saving in one sentence."""
    source = "Computes" if measured_forecast(report) else "Predicted to compute"
    factor = saving(report)
    if report.original.prompt_tokens == 0:
        return "No prompt was needed."
    if factor is None:
        return f"{source} no prompt token: the cache serves all of them."
    if f"{factor:.2f}" == "1.00":
        return f"{source} as many prompt tokens as the original order."
    return f"{source} {' '.join(ratio(factor))} prompt tokens than the original order."


def saving(report: RunReport) -> float | None:
    """Prompt tokens computed in original order over those computed by this run, or by its plan if not measured.

    The forecast of the original order is scaled to the prompt tokens measured: these are fewer where rows failed, and
    differ where the forecast counts estimated tokens. None when nothing is computed.
    """
    ours = measured_forecast(report) or report.predicted
    if not ours.computed_tokens or not report.original.prompt_tokens:
        return None
    return (1 - report.original.hit_rate) * ours.prompt_tokens / ours.computed_tokens


def measured_forecast(report: RunReport) -> CacheForecast | None:
    """The engine's counts in the form of a forecast; None if it gave none."""
    if report.measured_prompt_tokens is None or report.measured_cached_tokens is None:
        return None
    return CacheForecast(report.measured_prompt_tokens, report.measured_cached_tokens)


def is_dry_run(report: RunReport) -> bool:
    """Whether the run was planned only: no time was spent asking."""
    return "ask" not in report.stage_seconds and report.measured_prompt_tokens is None


def why_not_measured(report: RunReport) -> str:
    """The reason that measured values are missing."""
    if is_dry_run(report):
        return "not measured: dry run"
    if not report.num_asked:
        return "not measured: no row was asked"
    return "not measured: the engine does not report it"


def token_note(report: RunReport) -> str:
    """A warning if the forecasts do not count real tokens, otherwise empty."""
    if report.token_counts == "exact":
        return ""
    return f"Predicted token counts are not exact ({report.token_counts})."


# ---------------------------------------------------------------------------------------------------------- facts
def prompt_rows(report: RunReport) -> list[Cells]:
    """Prompt tokens, those computed, and the hit rate: measured, predicted, at most, and in original order."""
    return [
        _measured_row(report),
        ("predicted", *_forecast_cells(report.predicted)),
        ("ceiling of any order", "", "", percent(report.ceiling)),
        ("original order, predicted", *_forecast_cells(report.original)),
    ]


def _measured_row(report: RunReport) -> Cells:
    measured = measured_forecast(report)
    if measured:
        return ("measured", *_forecast_cells(measured))
    if report.measured_prompt_tokens is None:
        return (why_not_measured(report), "", "", "")
    return ("measured", count(report.measured_prompt_tokens), "not reported", "not reported")


def _forecast_cells(forecast: CacheForecast) -> Cells:
    return count(forecast.prompt_tokens), count(forecast.computed_tokens), percent(forecast.hit_rate)


def row_facts(report: RunReport) -> list[Cells]:
    """How many rows there were and what became of them, failures by reason."""
    asked = "to ask" if is_dry_run(report) else "asked in this run"
    facts: list[Cells] = [
        ("rows", count(report.num_rows)),
        ("distinct rows", f"{count(report.num_distinct)}{_saved_rows(report)}"),
        (asked, count(report.num_asked)),
        ("resumed from the checkpoint", count(report.num_resumed)),
        *([("found in the result cache", count(report.num_cached))] if report.num_cached else []),
        ("failed", count(report.num_failed)),
        *([("cut off", f"{count(report.num_cut)}: raise --max-tokens (max_tokens=)")] if report.num_cut else []),
    ]
    return facts + [(f"  {reason}", count(rows)) for reason, rows in report.failures.items()]


def _saved_rows(report: RunReport) -> str:
    """What became of the rows beyond the distinct ones: a row that failed before it was asked is no duplicate."""
    rest = report.num_rows - report.num_distinct
    if not rest:
        return ""
    kinds = "duplicates or failed rows" if report.num_failed else "duplicates"
    return f" ({count(rest)} {kinds} not sent)"


def run_facts(report: RunReport) -> list[Cells]:
    """Question, model, plan, speed, answers and time."""
    missing, rate = why_not_measured(report), report.rows_per_second
    return [
        ("question", _short(report.question)),
        ("model", report.model or "not named"),
        ("planner", report.planner),
        ("layout", report.layout),
        ("fields, first row asked", ", ".join(report.field_order) or "none"),
        ("distinct rows a second", missing if rate is None else f"{rate:,.1f}"),
        *_loaded(report),
        ("output tokens", missing if is_dry_run(report) else count(report.output_tokens)),
        ("seconds", ", ".join(f"{stage} {seconds(spent)}" for stage, spent in report.stage_seconds.items()) or "none"),
    ]


def _loaded(report: RunReport) -> list[Cells]:
    """What stored contexts did, where they did anything."""
    if not report.measured_loaded_tokens:
        return []
    return [("prompt tokens loaded", f"{count(report.measured_loaded_tokens)}, from stored contexts")]


def _short(question: str) -> str:
    """The question on one line, cut where it is very long."""
    question = " ".join(question.split())
    return question if len(question) <= QUESTION_CHARACTERS else question[: QUESTION_CHARACTERS - 3] + "..."


# -------------------------------------------------------------------------------------------------------- formats
def ratio(factor: float) -> tuple[str, str]:
    """A saving as times and direction: ("2.50x", "fewer"); a loss is turned round."""
    if 0 < factor < 1:
        return f"{1 / factor:.2f}x", "more"
    return f"{factor:.2f}x", "fewer"


def seconds(spent: float) -> str:
    """Two digits after the point, three for short times; never 0 for something that took time."""
    if 0 < spent < 0.001:
        return "<0.001"
    return f"{spent:,.3f}" if spent < 1 else f"{spent:,.2f}"


def _table(section: Section) -> Table:
    table = Table(box=None, show_header=bool(section.heads), pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(section.name, min_width=LABEL_WIDTH)
    for head in section.heads:
        table.add_column(head, justify="right")
    for row in section.rows:
        table.add_row(*row)
    return table
