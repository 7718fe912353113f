"""Names of columns in options -> their place in the question."""

from __future__ import annotations

from itertools import pairwise

from vllm_relational.prompts.template import Question, unknown_column
from vllm_relational.records import RelationalError


class QuestionColumns:
    """The columns that a question uses, among those of the table."""

    def __init__(self, question: Question, table_columns: list[str]) -> None:
        self.used, self.all = question.columns, table_columns

    def number(self, name: str, option: str) -> int:
        """The original position of a column; raises ``RelationalError`` naming the option."""
        if name in self.used:
            return self.used.index(name)
        if name not in self.all:
            raise unknown_column(name, self.all, option)
        raise RelationalError(
            f"{option} names {name!r}, which the prompt does not use: name it in the prompt or leave it"
        )

    def kept_pairs(self, groups: tuple[tuple[str, ...], ...]) -> tuple[tuple[int, int], ...]:
        """Neighbours, in original order, in each group of columns that keep it."""
        placed = (sorted({self.number(name, "keep_order") for name in group}) for group in groups)
        return tuple(sorted({pair for group in placed for pair in pairwise(group)}))
