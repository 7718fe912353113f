"""A call as the planner found it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from vllm_relational.sql.blocks import Site, key_of
from vllm_relational.sql.operator import Operator


@dataclass(frozen=True)
class PlannedCall:
    """A call, its operator, the query for its inputs, where it stands, and the columns that it reads."""

    call: exp.Expr
    operator: Operator
    query: exp.Select
    site: Site
    columns: list[exp.Expr]

    @property
    def key(self) -> exp.Expr:
        """The expression whose value tells its inputs apart."""
        return key_of(self.columns, self.operator.keeps_nulls)
