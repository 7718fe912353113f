"""What a statement would ask, operator by operator; nothing is sent to a model.

DuckDB computes each operator's inputs, and the pipeline plans them as a run would. Where an input depends on answers
that nobody has yet, the numbers are those for all rows that may come, and an estimate for the share that will.
"""

from __future__ import annotations

import zlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from sqlglot import exp

from vllm_relational.sql.aggregate import ASSUMED_CONTEXT, first_parts
from vllm_relational.sql.blocks import ARGUMENT, GUARD_META, KEY, condition_of, conjuncts, keep_conditions, lookups
from vllm_relational.sql.context import StatementContext
from vllm_relational.sql.cost import Tokens, answer_tokens
from vllm_relational.sql.evaluation import Evaluation
from vllm_relational.sql.functions import CallQuestion
from vllm_relational.sql.merging import inherited
from vllm_relational.sql.operator import Operator, Settings
from vllm_relational.sql.operator_table import OperatorTable
from vllm_relational.sql.parse import DIALECT, calls, holds_call
from vllm_relational.sql.passes.blocking import check_rows, two_sides
from vllm_relational.sql.planned_call import PlannedCall
from vllm_relational.sql.planner import CallPlanner
from vllm_relational.sql.probe import evaluated, is_free
from vllm_relational.sql.retrieve import Retrieval
from vllm_relational.sql.selectivity import ASSUMED, Selectivity, product, selectivities

# On a block with a LIMIT: the rows after which a run stops, and what its predicates keep.
NEED_META, PASSING_META = "need", "passing"


@dataclass
class OperatorForecast:
    """What is known of an operator before it is asked.

    tokens:     of the prompts that have no answer yet, for all rows that may come.
    to_ask:     prompts; open: inputs without an answer; inherits: of these, those that share the prompt of another.
    cached:     prompts that a run will find answered in the result cache, as far as it was looked into.
    share:      of these rows, the part that is expected to come: 1 where that is certain.
    kept:       what predicates keep of these rows, behind ``share``.
    waits_for:  operators whose answers decide which rows come; ``reads``: operators whose answers are its input.
    counts:     how tokens were counted.
    planned:    the keys that are in ``tokens``.
    candidates: pairs of a semantic join that will at most be proposed; 0 for other operators.
    stops_after: rows of a LIMIT, after which no more are asked; 0 without.
    is_partial: its inputs were left out of the forecast.
    assumed:    tokens of context that LLM_AGG was planned for where the engine does not say; 0 where it says.
    """

    operator: Operator
    tokens: Tokens = field(default_factory=Tokens)
    to_ask: int = 0
    open: int = 0
    inherits: int = 0
    cached: int = 0
    share: float = 1.0
    kept: list[Selectivity] = field(default_factory=list)
    waits_for: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    counts: str = "exact"
    stops_after: int = 0
    planned: set[str] = field(default_factory=set)
    candidates: int = 0
    is_partial: bool = False
    assumed: int = 0

    def narrow(self, share: float, kept: Sequence[Selectivity] = ()) -> None:
        """At most that share of the rows is expected to come."""
        if kept and share <= self.share:
            self.kept = list(kept)
        self.share = min(self.share, share)

    @property
    def is_certain(self) -> bool:
        """Whether the inputs are known."""
        unknown = self.waits_for or self.reads or self.stops_after or self.candidates or self.is_partial
        return not unknown

    @property
    def is_answered(self) -> bool:
        """Whether all answers that may be needed are there; passages are, as a forecast searches for them."""
        if isinstance(self.operator.question, Retrieval):
            return not self.reads and not self.is_partial
        return not self.to_ask and not self.cached and self.is_certain


@dataclass(frozen=True)
class StatementPlan:
    """The forecasts of a statement in the order in which its operators would be asked.

    sql: the statement on one line, without comments; notes: what was rewritten in it as a whole; unread: columns that
    the settings of deduplication name and no question reads.
    """

    sql: str
    forecasts: tuple[OperatorForecast, ...]
    settings: Settings
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def tokens(self) -> Tokens:
        """The expected tokens of all operators."""
        total = Tokens()
        for forecast in self.forecasts:
            total += forecast.tokens.times(forecast.share)
        return total


@dataclass(frozen=True)
class Extent:
    """How much of a statement to forecast; by default all.

    choosing:    to choose a layout: pairs of semantic joins are left out, there can be very many, and passages that a
                 run may not need; nothing is merged by meaning, as texts would be embedded for each layout.
    counts_only: the inputs, but no tokens.
    halvings:    so often the inputs are halved, and tokens scaled up again.
    common:      by operator the fields by whose values inputs are chosen, so that operators keep the same rows.
    quick:       plans are made without search.
    """

    choosing: bool = False
    counts_only: bool = False
    halvings: int = 0
    common: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    quick: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether operators are forecast as a run plans them."""
        return not self.counts_only and not self.halvings and not self.quick


def forecast_tree(context: StatementContext, tree: exp.Expr, extent: Extent = Extent()) -> StatementPlan:
    """The forecasts for a prepared tree, which stays as it is."""
    found: dict[str, OperatorForecast] = {}
    context = context.from_start()
    planner = context.planner()
    ForecastEvaluation(context, planner, found, extent).evaluate(planner.walk(tree.copy()))
    written = context.tree.sql(dialect=DIALECT, comments=False)
    return StatementPlan(written, tuple(found.values()), context.settings)


class ForecastEvaluation(Evaluation):
    """Computes what each operator would be asked, as far as that is known."""

    def __init__(
        self, context: StatementContext, planner: CallPlanner, found: dict[str, OperatorForecast], extent: Extent
    ) -> None:
        super().__init__(planner)
        self._context, self._found, self._extent = context, found, extent

    def ask(self, planned: PlannedCall) -> None:
        """Plan the inputs that are known, or say what they wait for."""
        found, operator = self._found, planned.operator
        unknown = self._unknown()
        query, undecided = _without(planned.query, unknown)
        entry = found.setdefault(operator.table.name, OperatorForecast(operator))
        entry.stops_after = max(entry.stops_after, planned.site.block.meta.get(NEED_META, 0))
        kept = self._kept(undecided, unknown)
        entry.waits_for += [each.operator for each in kept if each.operator not in entry.waits_for]
        entry.narrow(product(kept), kept)
        reads = sorted({unknown[node.name].name for node in lookups(query) if node.name in unknown})
        if reads:
            entry.reads += reads
            operator.rows_in += self._context.count(_rows_only(query))
        else:
            self._plan(entry, planned, query)

    def _unknown(self) -> dict[str, OperatorTable]:
        """By their lookups, the operators that lack answers."""
        lacking = (known.operator.table for known in self._found.values() if not known.is_answered)
        return {table.lookup: table for table in lacking}

    def _kept(self, conditions: Sequence[exp.Expr], unknown: Mapping[str, OperatorTable]) -> list[Selectivity]:
        """What the conditions keep; one operator counts once, as a guard repeats a condition."""
        found: dict[str, Selectivity] = {}
        for condition in conditions:
            for each in selectivities(self._context, condition, unknown):
                found.setdefault(each.operator, each)
        return list(found.values())

    def _plan(self, entry: OperatorForecast, planned: PlannedCall, query: exp.Select) -> None:
        question, settings = planned.operator.question, self._context.settings
        sides = two_sides(question.function, planned.columns, planned.site.block)
        if self._extent.choosing and (sides is not None or (isinstance(question, Retrieval) and not entry.is_certain)):
            entry.is_partial = True
            return
        if sides is not None:
            check_rows(self._context.count(query))
        needed, left_out = evaluated(self._context, planned, self._unknown()), set[str]()
        inputs = self._context.distinct_inputs(planned.operator, query, only=needed, left_out=left_out)
        self._context.answers_database.lacks(planned.operator.table, bool(left_out))
        if isinstance(question, Retrieval):
            self._context.ask(planned.operator, inputs)
            return
        _plan_inputs(self._context, entry, inputs, question, self._extent)
        if entry.stops_after and planned.operator.rows_in:
            kept: list[Selectivity] = planned.site.block.meta.get(PASSING_META, [])
            likely = max(settings.batch_rows, entry.stops_after / max(product(kept), 1 / planned.operator.rows_in))
            entry.narrow(likely / planned.operator.rows_in, kept)
        if sides is not None and settings.candidates is not None and inputs.num_rows:
            left = [ARGUMENT.format(place) for place in sides[0]]
            rows = inputs.group_by(left).aggregate([]).num_rows
            entry.candidates = min(rows * settings.candidates_k, inputs.num_rows)
            entry.narrow(entry.candidates / inputs.num_rows)

    def is_free(self, rows: exp.Select) -> bool:
        """By running them."""
        return is_free(self._context, rows)

    def first(self, kept: exp.Select, need: int) -> exp.Expr:
        """A run stops once enough rows passed; the forecast is for all that may be asked."""
        kept.meta[NEED_META] = need
        parts = [part for part in condition_of(kept, "where") if holds_call(part)]
        kept.meta[PASSING_META] = [each for part in parts for each in self._passing(part)]
        return super().first(kept, need)

    def _passing(self, part: exp.Expr) -> list[Selectivity]:
        """What a predicate keeps whose call is still to be asked."""
        found = list(calls(part))
        if len(found) != 1:
            return [Selectivity("", ASSUMED)]
        planned, test = self._planner.inspect(found[0]), exp.paren(part.copy(), copy=False)
        next(calls(test)).replace(self._planner.lookup(planned))
        return selectivities(self._context, test, {planned.operator.table.lookup: planned.operator.table})


def _plan_inputs(
    context: StatementContext, entry: OperatorForecast, inputs: pa.Table, question: CallQuestion, extent: Extent
) -> None:
    """What the pipeline's plan says of the inputs without an answer, or of some of them."""
    operator, keys = entry.operator, inputs[KEY].to_pylist()
    todo = inputs.filter(pa.array(_are_open(entry, keys), pa.bool_()))
    entry.planned.update(keys)
    if todo.num_rows == 0:
        return
    if extent.counts_only:
        entry.to_ask += todo.num_rows
        return
    records = operator.records(todo)
    options = operator.options(question, records, embeds=not extent.choosing)
    if question.aggregates:
        records = first_parts(context.llm, records, question, options)
        entry.assumed = 0 if context.llm.expected_engine().max_model_len else ASSUMED_CONTEXT
    kept = thinned(records, extent.common.get(operator.table.name, ()), extent.halvings)
    report = context.llm.forecast(kept, question.template, quick=extent.quick, **options)
    scale = records.num_rows / kept.num_rows
    output = report.num_asked * answer_tokens(question.answer_format)
    tokens = Tokens(report.predicted.prompt_tokens, report.predicted.hit_tokens, output)
    entry.tokens += tokens.times(scale)
    entry.to_ask += round(report.num_asked * scale)
    entry.open += todo.num_rows
    entry.cached += report.num_cached
    entry.inherits += round(inherited([report]) * scale)
    entry.counts = report.token_counts


def thinned(records: pa.Table, fields: Sequence[str], halvings: int) -> pa.Table:
    """The records halved so often, at least one: chosen by their values in those fields, or in all for none."""
    if not halvings:
        return records
    columns = [records[name].to_pylist() for name in fields or records.column_names]
    digests = (zlib.crc32(repr(values).encode("utf-8", "replace")) for values in zip(*columns, strict=True))
    chosen = [digest % (1 << halvings) == 0 for digest in digests]
    return records.filter(pa.array(chosen, pa.bool_())) if any(chosen) else records.slice(0, 1)


def _are_open(entry: OperatorForecast, keys: Sequence[str]) -> list[bool]:
    """Whether a run would ask: without an answer, or failed before, and not planned for another place already."""
    table, merging = entry.operator.table, entry.operator.merging
    return [(table.is_open(key, merging) or key in table.failed) and key not in entry.planned for key in keys]


def _without(query: exp.Select, unknown: Container[str]) -> tuple[exp.Select, list[exp.Expr]]:
    """The query without the conditions that nobody can decide yet, and these conditions."""
    query = query.copy()
    dropped: list[exp.Expr] = []
    for clause in list(query.find_all(exp.Where, exp.Having, exp.Qualify)):
        kept: list[exp.Expr] = []
        for part in conjuncts(clause.this):
            undecided = any(node.name in unknown for node in lookups(part))
            (dropped if undecided else kept).append(part)
        keep_conditions(clause, kept)
    for guarded in [case for case in query.find_all(exp.Case) if GUARD_META in case.meta]:
        branch = guarded.args["ifs"][0]
        if any(node.name in unknown for node in lookups(branch.this)):
            dropped.append(branch.this.copy())
            branch.set("this", exp.true())
    return query, dropped


def _rows_only(query: exp.Select) -> exp.Select:
    """The rows of an input query, whatever its arguments are."""
    query = query.copy()
    query.set("where", None)
    query.set("expressions", [exp.alias_(exp.Literal.number(1), KEY)])
    return query
