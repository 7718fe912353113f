"""The walk over a statement, call by call in the order in which SQL evaluates them: each becomes a lookup.

The walk is one pass. Where it needs more than the statement and DuckDB's schema, it yields a step (``steps``) and goes
on with the answer; it knows nothing of who answers.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from sqlglot import exp

from vllm_relational.config import Layout
from vllm_relational.records import RelationalError
from vllm_relational.sql.answers_database import AnswersDatabase
from vllm_relational.sql.binding import Binding
from vllm_relational.sql.blocks import (
    SOURCES,
    Aggregates,
    condition_of,
    group_keys,
    lookup,
    own_nodes,
    recursive_call,
    rows_before,
    rows_read,
    sql_of,
)
from vllm_relational.sql.call_reader import OUTSIDE, CallReader
from vllm_relational.sql.normalise import normalise_block
from vllm_relational.sql.operator import Operator, Settings
from vllm_relational.sql.parse import calls, error_here, holds_call, is_call, is_retrieval
from vllm_relational.sql.passes.late import apart, late_items, may_be_late, read_rows
from vllm_relational.sql.passes.lateral import read_from, rows_of_limit
from vllm_relational.sql.passes.limit import is_cut, split
from vllm_relational.sql.passes.pushdown import push_answered
from vllm_relational.sql.passes.unknown import hidden
from vllm_relational.sql.planned_call import PlannedCall
from vllm_relational.sql.session import Session
from vllm_relational.sql.steps import AskCall, OrderPredicates, StoreRows, TakeFirst, TryBlock, TryRows, Walk

SPLIT_META = "split"
IN_RECURSION = "an LLM function cannot stand where a query reads itself: CREATE TABLE its rows first"


class CallPlanner:
    """Plans one statement.

    connection: the user's, for schemas and binding. sql: the statement as written, for errors.
    layouts:    of operators by the name of their table; the others have the question first.
    """

    def __init__(
        self,
        connection: Session,
        database: AnswersDatabase,
        settings: Settings,
        sql: str,
        model: str,
        layouts: Mapping[str, Layout],
    ) -> None:
        self.sql, self._database, self._optimize = sql, database, settings.optimize
        self._aggregates = Aggregates(lambda: connection.macros.aggregates)
        self._binding = Binding(connection, sql)
        self._reader = CallReader(self._binding, self._aggregates, database, settings, sql, model, layouts)

    @property
    def operators(self) -> list[Operator]:
        """In the order in which they are asked; with the optimiser, equal questions are one operator."""
        return self._reader.operators

    @operators.setter
    def operators(self, known: list[Operator]) -> None:
        self._reader.operators = known

    def walk(self, tree: exp.Expr) -> Walk:
        """Replace every call in the tree by a lookup, once it is asked."""
        for block in list(tree.find_all(exp.Select, bfs=True)) if self._optimize else ():
            yield from self._visit_free_conditions(block)
        yield from self.visit(tree)
        left = next((node for node in tree.find_all(exp.Anonymous) if is_call(node)), None)
        if left is not None:
            raise self._error(left, OUTSIDE)

    # ------------------------------------------------------------------------------------------- looking, not asking
    def inspect(self, call: exp.Expr) -> PlannedCall:
        """The operator of a call and the query for its inputs, as far as the calls before are lookups."""
        return self._reader.read(call)

    def lookup(self, planned: PlannedCall) -> exp.Expr:
        """What stands for the call once it is answered."""
        return lookup(planned.operator.table.lookup, planned.key)

    def stands_alone(self, rows: exp.Select) -> bool:
        """Whether rows whose select list is still open read no column of a query around them."""
        return self._binding.stands_alone(rows)

    # -------------------------------------------------------------------------------------------------- traversal
    def visit(self, node: exp.Expr) -> Walk:
        """Common table expressions first, then blocks from the inside out."""
        held: exp.With | None = node.args.get("with_")
        ctes: list[exp.CTE] = [] if held is None else held.expressions
        for cte in ctes:
            again = recursive_call(cte)
            if again is not None:
                raise self._error(again, IN_RECURSION)
            yield from self.visit(cte.this)
        if isinstance(node, exp.Select):
            yield from self._visit_block(node)
            return
        for child in [part for part in node.iter_expressions() if part is not held]:
            yield from self.visit(child)
        if is_call(node):
            yield from self._visit_call(node)

    def _visit_call(self, call: exp.Expr) -> Walk:
        planned = self.inspect(call)
        yield AskCall(planned)
        call.replace(self.lookup(planned))

    def _visit_all(self, parts: list[exp.Expr]) -> Walk:
        for part in parts:
            yield from self.visit(part)

    def _visit_block(self, block: exp.Select) -> Walk:
        """The clauses in the order of evaluation."""
        if not holds_call(block):
            return
        yield from self._visit_tables(block)
        # Rows are computed apart only where the statement needs them at all.
        may_store = self._optimize and (not is_cut(block) or (yield TryBlock(block)))
        if may_store and (yield from self._split(block)):
            return
        yield from self._visit_predicates(block)
        yield from self._visit_groups(block)
        yield from self._visit_all(_parts(block, "having"))
        yield from self._visit_list(block, self._late(block) if may_store else [])

    def _visit_tables(self, block: exp.Select) -> Walk:
        rows = rows_of_limit(block, self._aggregates) if self._optimize else None
        if rows is not None:
            read_from(block, (yield StoreRows(rows)))
        yield from self._visit_all(_parts(block, *SOURCES))
        self._normalise(block)

    def _visit_predicates(self, block: exp.Select) -> Walk:
        if self._optimize:
            yield from self._visit_cheap_calls(block)
        parts = [part for part in condition_of(block, "where") if holds_call(part)]
        if self._optimize and len(parts) > 1:
            parts = yield OrderPredicates(block, parts)
        yield from self._visit_all(parts)

    def _visit_cheap_calls(self, block: exp.Select) -> Walk:
        """Passages in WHERE, before the predicates that ask the model, which may read them."""
        for part in condition_of(block, "where"):
            yield from self._visit_all(
                [node for node in calls(part) if is_retrieval(node) and len(list(calls(node))) == 1]
            )

    def _visit_list(self, block: exp.Select, late: list[exp.Expr]) -> Walk:
        """The select list and what is evaluated with it; ``late``: items to ask once the rows are known."""
        for part in _parts(block, "expressions", "distinct", "qualify", "windows", "order"):
            if not any(part is item for item in late):
                yield from self.visit(part)
        if late:
            rows, items = apart(block, late, self._aggregates, lambda item: self._binding.name_of(block, item))
            read_rows(block, (yield StoreRows(rows)), items)
            yield from self._visit_all(list(block.expressions))

    def _late(self, block: exp.Select) -> list[exp.Expr]:
        """The items of the select list to ask once the rows that come out are known."""
        if not may_be_late(block):
            return []
        items = [
            each
            for item in block.expressions
            for each in (self._binding.expanded(item, block) if item.is_star else [item])
        ]
        block.set("expressions", items)
        return late_items(block, self._aggregates)

    def _visit_free_conditions(self, block: exp.Select) -> Walk:
        """Conditions that read no answer of the calls in the block's FROM: these are then asked for fewer rows."""
        parts = [part for part in condition_of(block, "where") if holds_call(part)]
        if not parts or any(part.find(exp.Query) for part in parts):
            return
        with hidden(block, self._database.unknown.lookup) as is_whole:
            if not is_whole:
                return
            self._normalise(block)
            parts = [part for part in condition_of(block, "where") if holds_call(part)]
            if not (yield TryRows(rows_read(block, parts))):
                return
            if len(parts) > 1:
                parts = yield OrderPredicates(block, parts)
            yield from self._visit_all(parts)
        push_answered(block, self._aggregates, self._binds_inside)

    def _binds_inside(self, body: exp.Select) -> bool:
        """Whether DuckDB finds the names in the conditions of a block, those with calls aside."""
        with hidden(body, self._database.unknown.lookup):
            return self.stands_alone(rows_before(body))

    def _visit_groups(self, block: exp.Select) -> Walk:
        """GROUP BY, and its expressions wherever else the block has them: there they are values of the group."""
        group: exp.Group | None = block.args.get("group")
        if group is None:
            return
        for part in [key for key in group_keys(group) if holds_call(key)]:
            written, held, place = sql_of(part.unnest()), part.parent, (part.arg_key, part.index)
            yield from self.visit(part)
            answered = _at(held, *place)
            for other in _parts(block, "having", "expressions", "distinct", "qualify", "order"):
                for node in [node for node in own_nodes(other) if sql_of(node) == written]:
                    node.replace(answered.unnest().copy())

    def _split(self, block: exp.Select) -> Generator[Any, Any, bool]:
        """Compute the rows of a block with LIMIT first, and ask only about them; False where that saves nothing."""
        if block.args.get("limit") is None or block.meta.get(SPLIT_META):
            return False
        found = split(
            block,
            self._aggregates,
            lambda star: self._binding.expanded(star, block),
            lambda item: self._binding.name_of(block, item),
        )
        if found is None:
            return False
        table = yield StoreRows(found.rows)
        if found.kept is not None:
            found.kept.set("from_", exp.From(this=table))
            found.kept.meta[SPLIT_META] = True
            table = yield TakeFirst(found.kept, found.need)
            yield from self.visit(table)
        found.finish(block, table)
        yield from self._visit_all(list(block.expressions))
        return True

    def _normalise(self, block: exp.Select) -> None:
        normalise_block(block, self._aggregates, lambda name: self._binding.is_column(block, name), self.sql)

    def _error(self, node: exp.Expr, message: str) -> RelationalError:
        return error_here(self.sql, node, message)


def _parts(block: exp.Select, *clauses: str) -> list[exp.Expr]:
    held = [block.args.get(clause) for clause in clauses]
    return [part for item in held if item for part in (item if isinstance(item, list) else [item])]


def _at(held: exp.Expr | None, key: str | None, index: int | None) -> exp.Expr:
    """What stands at a place of a node now."""
    assert held is not None and key is not None
    found = held.args[key]
    answered: exp.Expr = found if index is None else found[index]
    return answered
