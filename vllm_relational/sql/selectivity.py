"""How many rows an LLM predicate keeps, by the answers that its operator has already; asks nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import duckdb
from sqlglot import exp

from vllm_relational.sql.blocks import lookups, sql_of
from vllm_relational.sql.context import StatementContext
from vllm_relational.sql.operator_table import ANSWERED, OperatorTable

# Share of rows that an LLM predicate keeps, before enough were asked.
ASSUMED = 0.5
# With fewer answers the share says little: 8 of 8 that pass leave 68% to 100% (Wilson, 95%).
MIN_ANSWERS = 8


@dataclass(frozen=True)
class Selectivity:
    """Of one predicate: the operator it reads, the share of inputs that pass, the answers that this was seen on.

    operator: '' for a predicate of several. answers: 0 where the share is assumed.
    """

    operator: str
    share: float
    answers: int = 0

    def __str__(self) -> str:
        how = f"measured on {self.answers:,} answers" if self.answers else "assumed"
        what = f"llm.{self.operator}" if self.operator else "a predicate of several calls"
        return f"{what} keeps {self.share:.0%}, {how}"


def product(found: Iterable[Selectivity]) -> float:
    """The share that passes all of them, were they independent."""
    return math.prod(each.share for each in found)


def selectivities(
    context: StatementContext, condition: exp.Expr, tables: Mapping[str, OperatorTable]
) -> list[Selectivity]:
    """The selectivity of a condition over lookups of ``tables``, by the lookups' names.

    It is measured where the condition is about one answer and nothing else: over other columns the answers alone do not
    decide it. Otherwise each operator in it is taken to keep half of the rows.
    """
    read = {node.sql(): node for node in lookups(condition) if node.name in tables}
    names = list(dict.fromkeys(node.name for node in read.values()))
    measured = _measured(context, condition, tables[names[0]]) if len(read) == 1 else None
    return [measured] if measured is not None else [Selectivity(tables[name].name, ASSUMED) for name in names]


def _measured(context: StatementContext, condition: exp.Expr, table: OperatorTable) -> Selectivity | None:
    test = exp.paren(condition.copy(), copy=False)
    for node in list(lookups(test)):
        node.replace(exp.column("answer", "__answers"))
    if any(column.table != "__answers" for column in test.find_all(exp.Column)) or test.find(exp.Query):
        return None
    text = (
        f"SELECT count(*) AS n, count(*) FILTER (WHERE {sql_of(test)}) AS k FROM {table.place} AS __answers "
        f"WHERE status = '{ANSWERED}'"
    )
    try:
        n, k = context.connection.execute(text).fetchall()[0]
    except duckdb.Error:  # no table before the first answer; a condition that fails on some answer
        return None
    return Selectivity(table.name, k / n, n) if n >= MIN_ANSWERS else None
