"""The evaluation that runs a statement: it asks every operator when the walk comes to its call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from sqlglot import exp

from vllm_relational.sql.blocks import (
    KEY,
    condition_of,
    rows_before,
    set_condition,
    sql_of,
)
from vllm_relational.sql.context import StatementContext
from vllm_relational.sql.cost import answer_tokens
from vllm_relational.sql.evaluation import Evaluation
from vllm_relational.sql.operator import Operator
from vllm_relational.sql.parse import calls, is_call
from vllm_relational.sql.passes.blocking import check_pairs, check_rows, choose, recall_note, two_sides
from vllm_relational.sql.passes.limit import ROW, batches
from vllm_relational.sql.passes.order import Estimate, by_inputs, by_rank
from vllm_relational.sql.planned_call import PlannedCall
from vllm_relational.sql.planner import CallPlanner
from vllm_relational.sql.probe import evaluated, is_free, own_order
from vllm_relational.sql.retrieve import Retrieval
from vllm_relational.sql.rounds import Demand

# A predicate is sampled where it has so many times more inputs than the sample: else sampling could cost more.
SAMPLED_FROM = 4


class RunEvaluation(Evaluation):
    """Asks the model. context: the statement that is run; demand: what of it the rounds before missed."""

    def __init__(self, context: StatementContext, planner: CallPlanner, demand: Demand) -> None:
        super().__init__(planner)
        self._context, self._demand = context, demand

    def ask(self, planned: PlannedCall) -> None:
        """Ask the inputs without an answer; of a semantic join, those that are likely to hold."""
        context, settings = self._context, self._context.settings
        sides = two_sides(planned.operator.question.function, planned.columns, planned.site.block)
        if sides is not None:
            check_rows(context.count(planned.query))
        inputs = self._inputs(planned, counts=True)
        if sides is not None and settings.candidates is None:
            check_pairs(planned.operator.pending(inputs).num_rows, settings.max_pairs)
        if sides is None or settings.candidates is None or not inputs.num_rows:
            context.ask(planned.operator, inputs)
            return
        blocked = choose(inputs, sides, settings.candidates, settings.candidates_k, settings.audit_pairs)
        for part in (blocked.candidates, blocked.audited):
            context.ask(planned.operator, part)
        planned.operator.rule_out(context.answers_database, blocked.left_out)
        found, missed = (self._holding(planned.operator, part) for part in (blocked.candidates, blocked.audited))
        planned.operator.notes.append(recall_note(blocked, found, missed))

    def _holding(self, operator: Operator, inputs: pa.Table) -> int:
        return sum(operator.table.answers.get(key) is True for key in inputs[KEY].to_pylist())

    # ------------------------------------------------------------------------------------------------------- limit
    def stored(self, rows: exp.Select) -> exp.Expr:
        """The rows as a temporary table."""
        with self._demand.complete():
            return exp.to_table(self._context.keep_rows(sql_of(rows)))

    def is_free(self, rows: exp.Select) -> bool:
        """By running them."""
        return is_free(self._context, rows)

    def is_read(self, block: exp.Select) -> bool:
        """By a probe for each call that reads no other's answer, where a query around the block may drop its rows."""
        found = [call for part in condition_of(block, "where") for call in calls(part) if not _nests(call)]
        if not isinstance(block.parent, exp.CTE | exp.Subquery) or not found:
            return True
        needed = (evaluated(self._context, self._planner.inspect(call)) for call in found)
        return any(keys is None or keys for keys in needed)

    def first(self, kept: exp.Select, need: int) -> exp.Expr:
        """Ask in batches until enough rows pass."""
        table = kept.args["from_"].this
        total = self._context.count(exp.Select(expressions=[exp.Star()]).from_(table.copy()))

        def passed(low: int, high: int) -> int:
            batch = kept.copy()
            within = exp.and_(exp.column(ROW) > low, exp.column(ROW) <= high)
            set_condition(batch, "where", [*condition_of(batch, "where"), within])
            for clause in ("limit", "offset", "order"):
                batch.set(clause, None)
            self.evaluate(self._planner.visit(batch))
            return self._context.count(batch)

        asked = max(batches(total, max(self._context.settings.batch_rows, 2 * need), passed, need), default=0)
        for operator in self._silently(kept):
            operator.notes.append(f"LIMIT: {asked:,} of {total:,} rows were looked at until {need:,} had passed")
        return self.stored(kept)

    def _silently(self, kept: exp.Select) -> list[Operator]:
        """Put lookups into a query whose calls have been asked as far as needed."""
        found = []
        for part in condition_of(kept, "where"):
            for call in [node for node in _inside_out(part) if is_call(node)]:
                planned = self._planner.inspect(call)
                found.append(planned.operator)
                call.replace(self._planner.lookup(planned))
        return found

    # ------------------------------------------------------------------------------------------------------- order
    def ordered(self, block: exp.Select, parts: list[exp.Expr]) -> list[exp.Expr]:
        """By cost / (1 - selectivity), both from a sample; without one DuckDB's own order, but for far fewer inputs."""
        size = self._context.settings.sample_rows
        if any(_nests(part) or _asks_inside(part, block) for part in parts):
            return parts
        found = [[self._planner.inspect(call) for call in calls(part)] for part in parts]
        own = own_order(self._context, found)
        parts, found = [parts[number] for number in own], [found[number] for number in own]
        if (
            not size
            or any(part.find(exp.Query) for part in parts)
            or not self._planner.stands_alone(rows_before(block))
        ):
            return parts  # rows that depend on those around: a sample of inputs says nothing of what passes
        inputs = [[self._inputs(planned) for planned in row] for row in found]
        if any(table.num_rows < SAMPLED_FROM * size for row in inputs for table in row):
            return [parts[number] for number in by_inputs(_pending(found, inputs))]
        samples = zip(parts, found, inputs, strict=True)
        estimates = [self._estimate(block, *sample) for sample in samples]
        places = by_rank(estimates)
        for place, number in enumerate(places):
            _note_rank(found[number], estimates[number], f"predicate {place + 1} of {len(parts)}")
        return [parts[number] for number in places]

    def _inputs(self, planned: PlannedCall, counts: bool = False) -> pa.Table:
        """The inputs that the block of the call has and that the statement evaluates."""
        needed, table = evaluated(self._context, planned), planned.operator.table
        missed, left_out = self._demand.of(table)
        only = needed | missed if needed is not None else None
        inputs = self._context.distinct_inputs(planned.operator, planned.query, counts, only, left_out)
        self._context.answers_database.lacks(table, bool(left_out))
        return inputs

    def _estimate(
        self, block: exp.Select, part: exp.Expr, found: Sequence[PlannedCall], inputs: Sequence[pa.Table]
    ) -> Estimate:
        """Ask a sample of the inputs of one predicate and see what it keeps."""
        cost, samples = 0.0, []
        for planned, table in zip(found, inputs, strict=True):
            rows = np.linspace(0, table.num_rows - 1, self._context.settings.sample_rows).astype(np.int64)
            sample = table.take(pa.array(np.unique(rows)))
            samples.append(sample[KEY].to_pylist())
            pending = planned.operator.pending(table).num_rows
            self._context.ask(planned.operator, sample, audits=False)
            cost += pending * self._tokens_a_prompt(planned.operator, sample) / table.num_rows
        kept, rows_seen = self._seen(block, part, found, samples)
        return Estimate(cost, kept / rows_seen if rows_seen else 1.0, rows_seen)

    def _tokens_a_prompt(self, operator: Operator, sample: pa.Table) -> float:
        """Tokens to compute and to decode for one prompt of a sample, with nothing in the cache.

        Of predicates over the same rows, the one that is sampled first pays for the rows; ranks must not depend on it.
        """
        llm, records, question = self._context.llm, operator.records(sample), operator.question
        if isinstance(question, Retrieval):
            return 1.0
        prepared = llm.prepare(records, question.template, **operator.options(question, records))
        report = prepared.plan(llm.expected_engine()).report
        computed: float = report.predicted.computed_tokens / max(report.num_asked, 1)
        return computed + answer_tokens(question.answer_format)

    def _seen(
        self,
        block: exp.Select,
        part: exp.Expr,
        found: Sequence[PlannedCall],
        samples: Sequence[list[str]],
    ) -> tuple[int, int]:
        """Of the rows whose inputs were sampled: how many pass, and how many there are."""
        decided = exp.paren(part.copy(), copy=False)  # a part that is a call by itself needs a parent to be replaced in
        for call, planned in zip(list(calls(decided)), found, strict=True):
            call.replace(self._planner.lookup(planned))
        rows = rows_before(block)
        rows.set("expressions", [exp.alias_(decided, "__kept")])
        keys = [planned.key for planned in found]
        sampled = [
            exp.In(this=key, expressions=[exp.Literal.string(text) for text in texts])
            for key, texts in zip(keys, samples, strict=True)
        ]
        set_condition(rows, "where", [*condition_of(rows, "where"), *sampled])
        text = f"SELECT count(*) AS n, count(*) FILTER (WHERE __kept) AS k FROM ({sql_of(rows)})"
        row = self._context.fetch(text).to_pylist()[0]
        return row["k"], row["n"]


def _pending(found: Sequence[Sequence[PlannedCall]], inputs: Sequence[Sequence[pa.Table]]) -> list[int]:
    """How many inputs of each predicate have no answer yet."""
    return [
        sum(planned.operator.pending(table).num_rows for planned, table in zip(row, tables, strict=True))
        for row, tables in zip(found, inputs, strict=True)
    ]


def _note_rank(found: Sequence[PlannedCall], seen: Estimate, place: str) -> None:
    for planned in found:
        kept = f"keeps {seen.selectivity:.0%} of {seen.rows} rows sampled"
        planned.operator.notes.append(f"{place}: {kept}, {seen.cost:.0f} tokens a row")


def _asks_inside(part: exp.Expr, block: exp.Select) -> bool:
    """Whether a call stands in a subquery of the part."""
    return any(call.find_ancestor(exp.Select) is not block for call in calls(part))


def _nests(part: exp.Expr) -> bool:
    return any(inner is not call for call in calls(part) for inner in calls(call))


def _inside_out(part: exp.Expr) -> list[exp.Expr]:
    """The nodes below ``part``, each after those that it holds."""
    return list(reversed(list(part.walk(bfs=True))))
