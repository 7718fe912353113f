"""One statement, what it runs on, and what DuckDB computes for it on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
from sqlglot import exp

from vllm_relational.config import Layout
from vllm_relational.sql.answers_database import AnswersDatabase
from vllm_relational.sql.blocks import KEY, sql_of
from vllm_relational.sql.interrupts import interruptible
from vllm_relational.sql.operator import Operator, Settings
from vllm_relational.sql.parse import engine_error
from vllm_relational.sql.planner import CallPlanner
from vllm_relational.sql.retrieve import Retrieval
from vllm_relational.sql.session import Session
from vllm_relational.sql.statement_model import StatementModel
from vllm_relational.table.duckdb_cells import arrow_of_relation

COUNT = "__count"


@dataclass(frozen=True)
class StatementContext:
    """One statement and what it runs on.

    connection: the user's, with what the statement may name; sql: as written, its parameters numbered.
    tree:       the statement, read once; whoever changes it changes a copy.
    layouts:    of operators by the name of their table; the others have the question first.
    searched:   the questions of ``retrieve`` that this statement searched for, by table and key, also to forecast.
    """

    connection: Session
    answers_database: AnswersDatabase
    llm: StatementModel
    settings: Settings
    sql: str
    tree: exp.Expr
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    searched: set[tuple[str, str]] = field(default_factory=set)

    def planner(self) -> CallPlanner:
        """A planner for the statement, with no operator yet."""
        model = self.llm.expected_engine().model
        return CallPlanner(self.connection, self.answers_database, self.settings, self.sql, model, self.layouts)

    def from_start(self) -> StatementContext:
        """The statement before anything was asked."""
        return dataclasses.replace(self, llm=self.llm.from_start())

    def with_cache_share(self, share: float) -> StatementContext:
        """The statement on an engine with that share of its KV cache, for a forecast of that share of the inputs."""
        return dataclasses.replace(self, llm=self.llm.with_cache_share(share))

    def fetch(self, text: str) -> pa.Table:
        """The rows of a query that this package wrote."""
        try:
            with interruptible(self.connection):
                return self.connection.called(self.connection.relation(text).to_arrow_table)
        except duckdb.Error as error:
            raise engine_error(self.sql, error) from error

    def _cells(self, text: str) -> pa.Table:
        """As ``fetch``, with cells as ``run`` reads them from a relation."""
        try:
            with interruptible(self.connection):
                return arrow_of_relation(self.connection.called(self.connection.relation(text).materialize))
        except duckdb.Error as error:
            raise engine_error(self.sql, error) from error

    def count(self, query: exp.Select) -> int:
        """How many rows a query has."""
        return int(self.fetch(f"SELECT count(*) AS n FROM ({sql_of(query)})")["n"][0].as_py())

    def ask(self, operator: Operator, inputs: pa.Table, audits: bool = True) -> None:
        """Ask the inputs without an answer; of passages, those that a forecast of the statement searched for count.

        audits: False for a sample.
        """
        if not isinstance(operator.question, Retrieval):
            operator.ask(self.llm, self.answers_database, inputs, audits)
            return
        before, name = operator.asked, operator.table.name
        self.searched.update((name, key) for key in operator.pending(inputs)[KEY].to_pylist())
        operator.ask(self.llm, self.answers_database, inputs)
        operator.asked = before + sum((name, key) in self.searched for key in inputs[KEY].to_pylist())

    def keep_rows(self, text: str) -> str:
        """Store the rows of a query in a temporary table, which stays until the next statement; returns its name."""
        name = self.answers_database.new_rows()
        try:
            with interruptible(self.connection):
                self.connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {text}").fetchall()
        except duckdb.Error as error:
            raise engine_error(self.sql, error) from error
        return name

    def distinct_inputs(
        self,
        operator: Operator,
        query: exp.Select,
        counts: bool = True,
        only: Container[str] | None = None,
        left_out: set[str] | None = None,
    ) -> pa.Table:
        """The inputs that differ, in the order of their keys, so that prompts do not change from run to run.

        counts: add them to the operator's counts. only: the keys that are needed, None for all; the others go into
        ``left_out``.
        """
        arguments = [name for name in query.named_selects if name != KEY]
        firsts = "".join(f"first({name}) AS {name}, " for name in arguments)
        # A column's collation may take texts for equal that the model is to see, and that lookups tell apart.
        rows = f"SELECT * REPLACE ({KEY} COLLATE C AS {KEY}) FROM ({sql_of(query)})"
        text = f"SELECT {KEY}, {firsts}count(*) AS {COUNT} FROM ({rows}) GROUP BY {KEY} ORDER BY {KEY}"
        inputs = self._cells(text)
        if only is not None:
            needed = [key in only for key in inputs[KEY].to_pylist()]
            if left_out is not None:
                left_out.update(key for key, kept in zip(inputs[KEY].to_pylist(), needed, strict=True) if not kept)
            inputs = inputs.filter(pa.array(needed, pa.bool_()))
        if counts:
            operator.rows_in += sum(inputs[COUNT].to_pylist())
            operator.distinct += inputs.num_rows
        return inputs.drop_columns([COUNT])
