"""Plans and runs of SQL statements as trees for a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from vllm_relational.config import ROW_FIRST
from vllm_relational.sql.cost import Tokens, measured, predicted
from vllm_relational.sql.execute import Execution
from vllm_relational.sql.forecast import OperatorForecast, StatementPlan
from vllm_relational.sql.merging import audit_lines, merge_lines
from vllm_relational.sql.operator import Operator, Settings
from vllm_relational.sql.retrieve import Retrieval
from vllm_relational.terminal import printable

WIDTH = 110
SHOWN = 90


def render_plan(plan: StatementPlan) -> str:
    """The operators of a plan, each above those whose answers it needs."""
    root = Tree(_line(plan.sql))
    nodes: dict[str, Tree] = {}
    for entry in reversed(plan.forecasts):
        name = entry.operator.table.name
        above = next((other.operator.table.name for other in plan.forecasts if name in _needs(other)), "")
        nodes[name] = nodes.get(above, root).add(_line(_heading(entry.operator)))
        for line in _forecast_lines(entry, plan.settings):
            nodes[name].add(_line(line))
    for note in [*(f"rewrite: {note}" for note in plan.notes), *_misspelt(plan.unread)]:
        root.add(_line(note))
    if len(plan.forecasts) != 1:
        root.add(_line(f"in all: {_tokens(plan.tokens, plan.settings)}"))
    return _printed(root)


def render_run(run: Execution, settings: Settings) -> str:
    """What was asked, as predicted by the plans and as counted by the engine."""
    root = Tree(_line(f"{run.asked:,} prompts asked"))
    for operator in run.operators:
        node = root.add(_line(_heading(operator)))
        for line in _run_lines(operator, settings):
            node.add(_line(line))
    for note in [*(f"rewrite: {note}" for note in run.notes), *_misspelt(run.unread)]:
        root.add(_line(note))
    return _printed(root)


def _needs(entry: OperatorForecast) -> Sequence[str]:
    return [*entry.waits_for, *entry.reads]


def _heading(operator: Operator) -> str:
    places = {"from": "in ON", "where": "in WHERE", "group": "in GROUP BY", "having": "in HAVING"}
    if isinstance(operator.question, Retrieval):
        places["from"] = "in FROM"
    return f"{operator.table.place} {places.get(operator.clause, 'in SELECT')}: {operator.sql}"


def _forecast_lines(entry: OperatorForecast, settings: Settings) -> list[str]:
    operator = entry.operator
    if entry.reads:
        asked = ", ".join(f"llm.{name}" for name in entry.reads)
        lines = [f"at most {operator.rows_in:,} rows; its input is the answers of {asked}: nothing to plan yet"]
    elif isinstance(operator.question, Retrieval):
        lines = _search_lines(operator, operator.question)
    else:
        lines = [_input_line(entry), f"{_most(entry)}{_tokens(entry.tokens, settings)} (tokens {entry.counts})"]
    lines += _layout_lines(operator)
    if entry.assumed:
        lines.append(f"assumes {entry.assumed:,} tokens of context: the engine does not say")
    if entry.candidates:
        lines.append(f"blocking: at most {entry.candidates:,} candidates of {operator.distinct:,} pairs are asked")
    if entry.stops_after:
        lines.append(f"LIMIT: asked in batches until {entry.stops_after:,} rows have passed")
    if entry.waits_for:
        lines.append(f"depends on the answers of {', '.join(f'llm.{name}' for name in entry.waits_for)}")
    if entry.share < 1:
        expected = _tokens(entry.tokens.times(entry.share), settings)
        lines.append(f"expected, if {entry.share:.0%} of them are asked: {expected}")
    lines += [f"selectivity: {kept}" for kept in entry.kept]
    return [*lines, *_notes(operator)]


def _search_lines(operator: Operator, found: Retrieval) -> list[str]:
    before = operator.distinct - operator.asked
    known = f", {before:,} of them searched before" if before > 0 else ""
    placed = "by rank" if found.ordered else "placed so that rows share them"
    each = "1 passage each" if found.k == 1 else f"{found.k} passages each, {placed}"
    return [f"{operator.rows_in:,} rows in, {operator.distinct:,} distinct{known}; {each}"]


def _layout_lines(operator: Operator) -> list[str]:
    """Of a run, what was asked: one that was interrupted goes on in the layout that it had."""
    layout = operator.reports[-1].layout if operator.reports else operator.layout
    return ["layout: the row first, the question behind it"] if layout == ROW_FIRST else []


def _most(entry: OperatorForecast) -> str:
    return "" if entry.is_certain else "at most "


def _input_line(entry: OperatorForecast) -> str:
    operator = entry.operator
    known = operator.distinct - entry.open
    counts_inputs = known > 0 and not operator.question.aggregates
    answered = f", {known:,} of them answered before" if counts_inputs else ""
    merged = f", {entry.inherits:,} inherit the answer of another" if entry.inherits else ""
    return f"{_most(entry)}{operator.rows_in:,} rows in, {operator.distinct:,} distinct{answered}{merged}"


def _run_lines(operator: Operator, settings: Settings) -> list[str]:
    if isinstance(operator.question, Retrieval):
        return [*_search_lines(operator, operator.question), *_notes(operator)]
    others = (
        (operator.resumed, "resumed"),
        (operator.inherited, "inherited"),
        (operator.cached, "from the result cache"),
    )
    counts = "".join(f", {inputs:,} {how}" for inputs, how in others if inputs)
    lines = [f"{operator.rows_in:,} rows in, {operator.distinct:,} distinct, {operator.asked:,} asked{counts}"]
    lines += _layout_lines(operator)
    if operator.reports:
        lines.append(f"predicted: {_tokens(predicted(operator.reports, operator.question.answer_format), settings)}")
    counted = measured(operator.reports)
    if counted is not None:
        seconds = sum(report.stage_seconds.get("ask", 0.0) for report in operator.reports)
        lines.append(f"measured: {_tokens(counted, settings, seconds)}")
    lines += [*merge_lines(operator.reports), *audit_lines(operator.reports)]
    if cut := sum(report.num_cut for report in operator.reports):
        lines.append(
            f"cut off: {cut:,} answers end at max_tokens (--max-tokens), status 'cut' in {operator.table.place}"
        )
    if operator.table.failed:
        lines.append(f"failed: {len(operator.table.failed):,} inputs, listed in llm_errors")
    return [*lines, *_notes(operator)]


def _notes(operator: Operator) -> list[str]:
    return list(dict.fromkeys(f"rewrite: {note}" for note in operator.notes))


def _misspelt(unread: Sequence[str]) -> list[str]:
    return [f"deduplication: no question of the statement reads the column {name!r}" for name in unread]


def _tokens(tokens: Tokens, settings: Settings, seconds: float | None = None) -> str:
    parts = [f"{tokens.prompt:,} prompt tokens", f"hit rate {tokens.hit_rate:.1%}", f"{tokens.output:,} answer tokens"]
    if seconds is None and settings.rates is not None:
        seconds = settings.rates.seconds(tokens)
    if seconds is not None:
        parts.append(f"{seconds:,.1f} s")
    if settings.prices is not None:
        parts.append(f"${settings.prices.dollars(tokens):,.4f}")
    return ", ".join(parts)


def _line(text: str) -> Text:
    """One line without what could steer the terminal."""
    plain = printable(" ".join(text.splitlines()))
    return Text(plain if len(plain) <= SHOWN * 2 else f"{plain[: SHOWN * 2]}…")


def _printed(root: Tree) -> str:
    out = io.StringIO()
    console = Console(width=WIDTH, file=out, color_system=None, markup=False, emoji=False, highlight=False)
    console.print(root)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
