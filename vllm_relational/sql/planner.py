"""A statement, call by call in the order in which SQL evaluates them: each becomes an operator and then a lookup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
from sqlglot import exp

from vllm_relational.config import QUESTION_FIRST, Layout
from vllm_relational.records import RelationalError
from vllm_relational.sql.blocks import (
    KEY,
    Aggregates,
    Site,
    condition_of,
    group_keys,
    input_query,
    key_of,
    lookup,
    own_nodes,
    per_outer_row,
    recursive_call,
    rows_before,
    rows_read,
    set_condition,
    site_of,
    sql_of,
    visible_ctes,
)
from vllm_relational.sql.functions import Argument, Question, canonical_template, decision_of, field_names
from vllm_relational.sql.normalise import ARGUMENTS_META, WRITTEN_META, expand_stars, normalise_block
from vllm_relational.sql.operator import Operator, Settings, keeps_nulls, with_reads
from vllm_relational.sql.parse import calls, engine_error, error_here, holds_call, is_call, is_retrieval, parts_of
from vllm_relational.sql.passes.guards import guards_of, note_conditions
from vllm_relational.sql.passes.late import apart, late_items, may_be_late, read_rows
from vllm_relational.sql.passes.lateral import conditions_on_rows, read_from, rows_of_limit
from vllm_relational.sql.passes.limit import is_cut, split
from vllm_relational.sql.passes.pushdown import push_answered
from vllm_relational.sql.passes.unknown import hidden
from vllm_relational.sql.retrieve import FROM_META, Retrieval, check_type, retrieval_of
from vllm_relational.sql.session import Session
from vllm_relational.sql.store import Store

SPLIT_META = "split"
# Conditions of an outer query that the input of a subquery in FROM is limited to.
KEPT_META = "kept"
IN_BRACKETS = (
    "an LLM function cannot stand in a join in parentheses that has a name, or of which an outer join makes NULLs: "
    "write (SELECT ... FROM a JOIN b ON ... WHERE LLM_FILTER(...)) AS x in its place"
)
CLAUSES = {"from": "ON", "where": "WHERE", "group": "GROUP BY"}


@dataclass(frozen=True)
class Asked:
    """A call as the planner found it: its operator, the query for its inputs, where it stands, what it reads."""

    call: exp.Expr
    operator: Operator
    query: exp.Select
    site: Site
    columns: list[exp.Expr]

    @property
    def key(self) -> exp.Expr:
        """The expression whose value tells its inputs apart."""
        return key_of(self.columns, self.operator.keeps_nulls)


class Driver:
    """What is done on the way through a statement. This one does nothing: it rehearses."""

    def settle(self, asked: Asked) -> None:
        """The planner comes to a call; the answers of all calls before are known to lookups."""

    def ordered(self, planner: Planner, block: exp.Select, parts: list[exp.Expr]) -> list[exp.Expr]:
        """The LLM predicates of a block in the order in which to ask them."""
        return parts

    def stored(self, rows: exp.Select) -> exp.Expr:
        """Rows without calls as something to read from, twice the same."""
        return rows.subquery(f"__rows_{id(rows)}")

    def is_free(self, rows: exp.Select) -> bool:
        """Whether rows can be computed before the calls that are hidden in them."""
        return False

    def is_read(self, planner: Planner, block: exp.Select) -> bool:
        """Whether the statement may evaluate a call in the WHERE of a block."""
        return True

    def first(self, planner: Planner, kept: exp.Select, need: int) -> exp.Expr:
        """The first ``need`` rows that pass LLM predicates, as something to read from."""
        return self.stored(kept)


class Planner:
    """Plans one statement.

    connection: the user's, for schemas and binding. sql: the statement as written, for errors.
    settle:     called once a call, in evaluation order; the answers of all calls before are then known to lookups.
    layouts:    of operators by the name of their table; the others have the question first.
    operators:  in the order in which they are asked; with the optimiser, equal questions are one operator.
    """

    def __init__(
        self,
        connection: Session,
        store: Store,
        settings: Settings,
        sql: str,
        model: str,
        layouts: Mapping[str, Layout],
    ) -> None:
        self._connection, self._store, self.settings = connection, store, settings
        self._sql, self._model, self._layouts = sql, model, layouts
        self._aggregates = Aggregates(aggregate_names(connection))
        self.operators: list[Operator] = []
        self.driver = Driver()

    def plan(self, tree: exp.Expr, driver: Driver) -> None:
        """Replace every call in the tree by a lookup, settling it first."""
        self.driver = driver
        for block in list(tree.find_all(exp.Select, bfs=True)) if self.settings.optimize else ():
            self._visit_free_conditions(block)
        self.visit(tree)
        left = next((node for node in tree.find_all(exp.Anonymous) if is_call(node)), None)
        if left is not None:
            raise self._error(left, "an LLM function cannot stand here: use it inside of a SELECT")

    # -------------------------------------------------------------------------------------------------- traversal
    def visit(self, node: exp.Expr) -> None:
        """Common table expressions first, then blocks from the inside out."""
        held: exp.With | None = node.args.get("with_")
        ctes: list[exp.CTE] = [] if held is None else held.expressions
        for cte in ctes:
            again = recursive_call(cte)
            if again is not None:
                raise self._error(
                    again, "an LLM function cannot stand where a query reads itself: CREATE TABLE its rows first"
                )
            self.visit(cte.this)
        if isinstance(node, exp.Select):
            self._visit_block(node)
        else:
            for child in [part for part in node.iter_expressions() if part is not held]:
                self.visit(child)
            if is_call(node):
                self._settle_call(node)

    def _visit_block(self, block: exp.Select) -> None:
        """The clauses in the order of evaluation."""
        if not holds_call(block):
            return
        rows = rows_of_limit(block, self._aggregates) if self.settings.optimize else None
        if rows is not None:
            read_from(block, self.driver.stored(rows))
        for part in self._parts(block, "from_", "joins", "laterals"):
            self.visit(part)
        normalise_block(block, self._aggregates, lambda name: self._is_column(block, name), self._sql)
        # Rows are computed apart only where the statement needs them at all.
        may_store = self.settings.optimize and (not is_cut(block) or self.driver.is_read(self, block))
        if may_store and self._split(block):
            return
        if self.settings.optimize:
            self._visit_cheap_calls(block)
        parts = [part for part in condition_of(block, "where") if holds_call(part)]
        ordered = self.driver.ordered(self, block, parts) if self.settings.optimize and len(parts) > 1 else parts
        for part in ordered:
            self.visit(part)
        self._visit_groups(block)
        for part in self._parts(block, "having"):
            self.visit(part)
        late = self._late(block) if may_store else []
        for part in self._parts(block, "expressions", "distinct", "qualify", "windows", "order"):
            if not any(part is item for item in late):
                self.visit(part)
        if late:
            rows, items = apart(block, late, self._aggregates, lambda item: self._name(block, item))
            read_rows(block, self.driver.stored(rows), items)
            for item in list(block.expressions):
                self.visit(item)

    def _late(self, block: exp.Select) -> list[exp.Expr]:
        """The items of the select list to ask once the rows that come out are known."""
        if not may_be_late(block):
            return []
        items = [
            each for item in block.expressions for each in (self._expanded(item, block) if item.is_star else [item])
        ]
        block.set("expressions", items)
        return late_items(block, self._aggregates)

    def _visit_cheap_calls(self, block: exp.Select) -> None:
        """Passages in WHERE, before the predicates that ask the model, which may read them."""
        for part in condition_of(block, "where"):
            for call in [node for node in calls(part) if is_retrieval(node) and len(list(calls(node))) == 1]:
                self.visit(call)

    def _visit_free_conditions(self, block: exp.Select) -> None:
        """Conditions that read no answer of the calls in the block's FROM: these are then asked for fewer rows."""
        parts = [part for part in condition_of(block, "where") if holds_call(part)]
        if not parts or any(part.find(exp.Query) for part in parts):
            return
        with hidden(block, self._store.unknown.lookup) as is_whole:
            if not is_whole:
                return
            normalise_block(block, self._aggregates, lambda name: self._is_column(block, name), self._sql)
            parts = [part for part in condition_of(block, "where") if holds_call(part)]
            if not self.driver.is_free(rows_read(block, parts)):
                return
            for part in self.driver.ordered(self, block, parts) if len(parts) > 1 else parts:
                self.visit(part)
        push_answered(block, self._aggregates, self._binds_inside)

    def _binds_inside(self, body: exp.Select) -> bool:
        """Whether DuckDB finds the names in the conditions of a block, those with calls aside."""
        with hidden(body, self._store.unknown.lookup):
            return self.stands_alone(rows_before(body))

    def _visit_groups(self, block: exp.Select) -> None:
        """GROUP BY, and its expressions wherever else the block has them: there they are values of the group."""
        group: exp.Group | None = block.args.get("group")
        if group is None:
            return
        for part in [key for key in group_keys(group) if holds_call(key)]:
            written, held, place = sql_of(part.unnest()), part.parent, (part.arg_key, part.index)
            self.visit(part)
            settled = _at(held, *place)
            for clause in ("having", "expressions", "distinct", "qualify", "order"):
                for other in self._parts(block, clause):
                    for node in [node for node in own_nodes(other) if sql_of(node) == written]:
                        node.replace(settled.unnest().copy())

    def _parts(self, block: exp.Select, *clauses: str) -> list[exp.Expr]:
        held = [block.args.get(clause) for clause in clauses]
        return [part for item in held if item for part in (item if isinstance(item, list) else [item])]

    def _split(self, block: exp.Select) -> bool:
        """Compute the rows of a block with LIMIT first, and ask only about them; False where that saves nothing."""
        if block.args.get("limit") is None or block.meta.get(SPLIT_META):
            return False
        found = split(block, self._aggregates, lambda star: self._expanded(star, block), lambda e: self._name(block, e))
        if found is None:
            return False
        table = self.driver.stored(found.rows)
        if found.kept is not None:
            found.kept.set("from_", exp.From(this=table))
            found.kept.meta[SPLIT_META] = True
            table = self.driver.first(self, found.kept, found.need)
            self.visit(table)
        found.finish(block, table)
        for item in list(block.expressions):
            self.visit(item)
        return True

    def _name(self, block: exp.Select, item: exp.Expr) -> str:
        return str(self._describe(self._from(block, item))[0][0])

    # ------------------------------------------------------------------------------------------------------ calls
    def _settle_call(self, call: exp.Expr) -> None:
        asked = self.inspect(call)
        try:
            self.driver.settle(asked)
        except RelationalError as error:
            if is_retrieval(call):
                raise self._error(call, str(error)) from error
            raise
        call.replace(self.lookup(asked))

    def lookup(self, asked: Asked) -> exp.Expr:
        """What stands for the call once it is answered."""
        return lookup(asked.operator.table.lookup, asked.key)

    def inspect(self, call: exp.Expr) -> Asked:
        """The operator of a call and the query for its inputs, as far as the calls before are lookups."""
        assert isinstance(call, exp.Anonymous)
        if call.find_ancestor(exp.Lambda):
            raise self._error(call, "an LLM function cannot stand in a lambda: unnest the list into rows")
        try:
            site = site_of(call, self._aggregates)
        except LookupError:
            raise self._error(call, "an LLM function cannot stand here: use it inside of a SELECT") from None
        join = call.find_ancestor(exp.Join, exp.Select)
        if isinstance(join, exp.Join) and join.parent is not site.block:
            raise self._error(call, IN_BRACKETS)
        if isinstance(call.find_ancestor(exp.Pivot, exp.Select), exp.Pivot):
            raise self._error(
                call,
                "an LLM function cannot stand in a PIVOT: write PIVOT (SELECT ..., LLM(...) AS answer ...) ON answer",
            )
        if call.name.upper() == "LLM_AGG" and site.clause in ("from", "where", "group"):
            raise self._error(call, f"LLM_AGG cannot stand in {CLAUSES[site.clause]}: groups come after it; use HAVING")
        question, columns = self._question(call, site)
        guards = guards_of(call, self._aggregates) if self.settings.optimize else []
        eager = not self.settings.optimize
        query = input_query(site, columns, guards, eager, keeps_nulls(question, self.settings))
        query, types = self._bound(query, site)
        if isinstance(question, Retrieval):
            check_type(call, self._sql, types[0])
        operator = self._operator(call, site, question, types)
        if self.settings.optimize:
            note_conditions(operator.notes, site, [*guards, *query.meta.get(KEPT_META, [])])
        return Asked(call, operator, query, site, columns)

    def _question(self, call: exp.Anonymous, site: Site) -> tuple[Question | Retrieval, list[exp.Expr]]:
        """What the call asks, and the columns that its prompt reads."""
        if is_retrieval(call):
            assert self.settings.retriever is not None
            retrieval, column = retrieval_of(call, self._sql, self.settings.retriever)
            return retrieval, [column]
        expand_stars(call, lambda star: self._expanded(star, site.block))
        parts = parts_of(call, self._sql)
        columns, named = _distinct_arguments(parts.columns, call.meta[ARGUMENTS_META][-len(parts.columns) :])
        try:
            template = canonical_template(parts.function, parts.prompt, named)
            answer_format = decision_of(
                parts.function, parts.literals, self.settings.max_tokens, self.settings.max_json_tokens
            )
        except RelationalError as error:
            raise self._error(call, str(error)) from None
        question = Question(parts.function, template, answer_format, field_names(named))
        read = [columns[question.fields.index(field)] for field in question.reads]
        return with_reads(question, question.reads), read

    def _expanded(self, given: exp.Expr, block: exp.Select) -> list[exp.Expr]:
        """``pr.*`` and ``*`` -> columns."""
        sources = [given] if isinstance(given, exp.Column) else self._all_stars(given, block)
        found: list[exp.Expr] = []
        for source in sources:
            query = self._from(block, source)
            table = source.table if isinstance(source, exp.Column) else None
            names = [row[0] for row in self._describe(query)]
            found += [exp.column(name, table, quoted=True) for name in names]
        return found

    def _all_stars(self, star: exp.Expr, block: exp.Select) -> list[exp.Expr]:
        """``*`` over several tables, table by table, so that columns of one name stay apart."""
        sources = [block.args["from_"].this, *(join.this for join in block.args.get("joins") or [])]
        if len(sources) == 1 or star.args.get("except_") or not all(source.alias_or_name for source in sources):
            return [star]
        return [exp.Column(this=exp.Star(), table=exp.to_identifier(source.alias_or_name)) for source in sources]

    def _operator(self, call: exp.Expr, site: Site, question: Question | Retrieval, types: Sequence[str]) -> Operator:
        """The operator of a question; without optimiser, one a call."""
        settings = self.settings
        parts = [question.identity()]
        if isinstance(question, Question):
            parts += [*types, self._model, settings.system_prompt, str(settings.keeps_nulls)]
        if not settings.optimize:
            parts.append(f"call {len(self.operators)}")
        table = self._store.table(repr(parts), question.function, question.template, question.sql_type())
        known = next((operator for operator in self.operators if operator.table is table), None)
        if known is not None:
            if call.meta.get("start") not in known.places:
                known.notes.append("the statement has the question more than once: asked once")
                known.places.add(call.meta.get("start"))
            return known
        clause = "from" if FROM_META in call.meta else site.clause
        self.operators.append(Operator(call.meta.get(WRITTEN_META) or sql_of(call), clause, question, table, settings))
        self.operators[-1].places.add(call.meta.get("start"))
        if question.has_layout:
            self.operators[-1].layout = settings.layout or self._layouts.get(table.name, QUESTION_FIRST)
        return self.operators[-1]

    # ---------------------------------------------------------------------------------------------------- binding
    def _bound(self, query: exp.Select, site: Site) -> tuple[exp.Select, list[str]]:
        """The input query, if need be for every row around its subquery, and the types of its arguments."""
        around: exp.Expr | None = site.block
        failure: duckdb.Error | None = None
        while around is not None:
            try:
                described = self._connection.execute(f"DESCRIBE {sql_of(query)}").fetchall()
                return query, [row[1] for row in described if row[0] != KEY]
            except duckdb.Error as error:
                # Without a FROM of its own, what the tables around lack says more.
                failure = failure if failure and site.block.args.get("from_") else error
            around = around.find_ancestor(exp.Select)
            if isinstance(around, exp.Select):
                query = per_outer_row(query, around, site.block)
                if self.settings.optimize:
                    self._keep_rows(query, around, site.block)
        assert failure is not None
        raise engine_error(self._sql, failure) from failure

    def _keep_rows(self, query: exp.Select, outer: exp.Select, block: exp.Select) -> None:
        """Of the rows before a subquery in FROM, keep those that the conditions of WHERE on them alone keep."""
        for part in conditions_on_rows(outer, block):
            kept = condition_of(query, "where")
            set_condition(query, "where", [*kept, part])
            if self._has_names(query):
                query.meta.setdefault(KEPT_META, []).append(part)
            else:
                set_condition(query, "where", kept)

    def stands_alone(self, rows: exp.Select) -> bool:
        """Whether rows whose select list is still open read no column of a query around them."""
        rows.set("expressions", [exp.true()])
        return self._has_names(rows)

    def _has_names(self, query: exp.Select) -> bool:
        try:
            self._connection.execute(f"DESCRIBE {sql_of(query)}").fetchall()
        except duckdb.Error:
            return False
        return True

    def _describe(self, query: exp.Expr) -> list[Any]:
        try:
            return self._connection.execute(f"DESCRIBE {sql_of(query)}").fetchall()
        except duckdb.Error as error:
            raise engine_error(self._sql, error) from error

    def _from(self, block: exp.Select, item: exp.Expr) -> exp.Select:
        query = exp.Select(expressions=[item.copy()])
        for key in ("from_", "joins", "laterals"):
            held = block.args.get(key)
            query.set(key, [part.copy() for part in held] if isinstance(held, list) else held.copy() if held else None)
        query.set("with_", visible_ctes(block))
        return query

    def _is_column(self, block: exp.Select, name: str) -> bool:
        if block.args.get("from_") is None:
            return False
        return self._has_names(self._from(block, exp.column(name, quoted=True)))

    def _error(self, node: exp.Expr, message: str) -> RelationalError:
        return error_here(self._sql, node, message)


def _distinct_arguments(
    columns: Sequence[exp.Expr], named: Sequence[Argument]
) -> tuple[list[exp.Expr], list[Argument]]:
    """An argument given twice is one field."""
    kept: dict[str, tuple[exp.Expr, Argument]] = {}
    for column, argument in zip(columns, named, strict=True):
        # Only names are the same in capitals.
        same = argument.qualified.casefold() if isinstance(column, exp.Column) else sql_of(column)
        kept.setdefault(same, (column, argument))
    return [column for column, _ in kept.values()], [argument for _, argument in kept.values()]


def _at(held: exp.Expr | None, key: str | None, index: int | None) -> exp.Expr:
    """What stands at a place of a node now."""
    assert held is not None and key is not None
    found = held.args[key]
    settled: exp.Expr = found if index is None else found[index]
    return settled


def aggregate_names(connection: Session) -> list[str]:
    """DuckDB's aggregate functions."""
    return connection.aggregate_names
