"""Run a statement: ask every operator over its distinct inputs, then let DuckDB finish with the answers looked up."""

from __future__ import annotations

from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
from sqlglot import exp

from vllm_relational.sql.blocks import KEY, Site, sql_of
from vllm_relational.sql.normalise import normalise
from vllm_relational.sql.operator import Asks, Operator, Settings
from vllm_relational.sql.parse import engine_error, error_here, parse
from vllm_relational.sql.planner import Planner
from vllm_relational.sql.store import Store

COUNT = "__count"


@dataclass
class Execution:
    """What a statement asked and what came of it.

    rows:      the result; None for a statement without one.
    rewritten: the SQL that DuckDB finished with.
    """

    operators: list[Operator] = field(default_factory=list)
    rows: pa.Table | None = None
    rewritten: str = ""

    @property
    def asked(self) -> int:
        """Distinct prompts sent."""
        return sum(report.num_asked for operator in self.operators for report in operator.reports)


def execute(connection: duckdb.DuckDBPyConnection, store: Store, llm: Asks, settings: Settings, sql: str) -> Execution:
    """Run one statement with LLM functions; raises ``SQLError`` before anything is asked when it is wrong."""
    tree = prepared(sql)
    model = llm.expected_engine().model
    rehearsal = Planner(connection, store, settings, sql, model)
    _bind(connection, rehearse(rehearsal, tree), sql)
    store.forget_failures(operator.table for operator in rehearsal.operators)
    planner = Planner(connection, store, settings, sql, model)
    planner.plan(tree, _asker(connection, store, llm, sql))
    text = sql_of(tree)
    try:
        relation = connection.sql(text)
        rows = relation.to_arrow_table() if relation is not None else None
    except duckdb.Error as error:
        raise engine_error(sql, error) from error
    return Execution(planner.operators, rows, text)


def prepared(sql: str) -> exp.Expr:
    """The normalised tree of a statement that may hold calls."""
    tree = parse(sql)
    if not _may_ask(tree):
        raise error_here(sql, tree, "LLM functions may stand in SELECT, CREATE TABLE AS and INSERT ... SELECT only")
    normalise(tree, sql)
    return tree


def _may_ask(tree: exp.Expr) -> bool:
    if isinstance(tree, exp.Create):
        return tree.kind == "TABLE" and isinstance(tree.expression, exp.Query)
    return isinstance(tree, exp.Query | exp.Copy) or (
        isinstance(tree, exp.Insert) and isinstance(tree.expression, exp.Query)
    )


def rehearse(planner: Planner, tree: exp.Expr) -> exp.Expr:
    """The statement with lookups in place of calls, nothing asked."""
    copy = tree.copy()
    planner.plan(copy, lambda *_: None)
    return copy


def _bind(connection: duckdb.DuckDBPyConnection, tree: exp.Expr, sql: str) -> None:
    try:
        connection.execute(f"EXPLAIN {sql_of(tree)}").fetchall()
    except duckdb.Error as error:
        raise engine_error(sql, error) from error


def _asker(connection: duckdb.DuckDBPyConnection, store: Store, llm: Asks, sql: str):  # type: ignore[no-untyped-def]
    def settle(operator: Operator, query: exp.Select, site: Site) -> None:
        inputs = distinct_inputs(connection, operator, query, sql)
        operator.ask(llm, store, inputs)

    return settle


def distinct_inputs(connection: duckdb.DuckDBPyConnection, operator: Operator, query: exp.Select, sql: str) -> pa.Table:
    """The inputs that differ, in the order of their keys, so that prompts do not change from run to run."""
    arguments = [name for name in query.named_selects if name != KEY]
    firsts = ", ".join(f"first({name}) AS {name}" for name in arguments)
    text = f"SELECT {KEY}, {firsts}, count(*) AS {COUNT} FROM ({sql_of(query)}) GROUP BY {KEY} ORDER BY {KEY}"
    try:
        inputs = connection.sql(text).to_arrow_table()
    except duckdb.Error as error:
        raise engine_error(sql, error) from error
    operator.rows_in += sum(inputs[COUNT].to_pylist())
    operator.distinct += inputs.num_rows
    return inputs.drop_columns([COUNT])
