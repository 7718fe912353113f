"""What DuckDB evaluates, by operator: the inputs that a probe left out, and those that a result missed after all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from vllm_relational.sql.operator import Operator
from vllm_relational.sql.operator_table import OperatorTable
from vllm_relational.sql.probe import noted
from vllm_relational.sql.retrieve import Retrieval


class AnswersMissingError(Exception):
    """A result was computed without answers that it needs: ``Demand.missed`` has them now."""


@dataclass
class Demand:
    """Inputs by the name of their operator's table.

    left_out: keys that the probes of this round did not evaluate (``probe.evaluated``), so that they were not asked.
    missed:   of these, in all rounds, the keys that a result looked up: the next round asks them.
    """

    left_out: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    missed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _tables: dict[str, OperatorTable] = field(default_factory=dict)

    @property
    def is_certain(self) -> bool:
        """Whether no result can miss an answer."""
        return not any(self.left_out.values())

    def of(self, table: OperatorTable) -> tuple[set[str], set[str]]:
        """The keys of a table that results missed, and those that are left out."""
        self._tables[table.name] = table
        return self.missed[table.name], self.left_out[table.name]

    @contextmanager
    def complete(self) -> Iterator[None]:
        """While inside, a result is computed; raises ``AnswersMissingError`` behind it where it missed answers."""
        tables = list(self._tables.values())
        with noted(tables):
            yield
            lacking = {table.name: self._lacking(table) for table in tables}
        for name, keys in lacking.items():
            self.missed[name] |= keys
        if any(lacking.values()):
            raise AnswersMissingError

    def _lacking(self, table: OperatorTable) -> set[str]:
        return (self.left_out[table.name] & (table.noted or set())) - table.answers.keys()

    def begin(self, operators: Sequence[Operator]) -> list[Operator]:
        """The operators for another round: their counts of rows begin anew, what was asked stays."""
        self.left_out.clear()
        for operator in operators:
            operator.rows_in = operator.distinct = 0
            if isinstance(operator.question, Retrieval):  # counted by the rows of each round
                operator.asked = 0
        return list(operators)
