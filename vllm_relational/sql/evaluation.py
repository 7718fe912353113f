"""An evaluation answers the steps of a walk over a statement. This one asks nothing: it rehearses.

``run_evaluation`` asks the model, and ``forecast`` computes what a run would ask.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

from sqlglot import exp

from vllm_relational.records import RelationalError
from vllm_relational.sql.parse import error_here, is_retrieval
from vllm_relational.sql.planned_call import PlannedCall
from vllm_relational.sql.planner import CallPlanner
from vllm_relational.sql.steps import AskCall, OrderPredicates, Step, StoreRows, TakeFirst, TryBlock, TryRows, Walk


class Evaluation:
    """Answers steps. planner: the one that walks, to look at calls before the walk comes to them."""

    def __init__(self, planner: CallPlanner) -> None:
        self._planner = planner

    def evaluate(self, walk: Walk) -> None:
        """Go through a walk to its end."""
        answer: Any = None
        with closing(walk):
            while True:
                try:
                    step = walk.send(answer)
                except StopIteration:
                    return
                answer = self._answer(step)

    def _answer(self, step: Step) -> Any:
        match step:
            case AskCall(planned):
                return self._ask_in_place(planned)
            case OrderPredicates(block, parts):
                return self.ordered(block, parts)
            case StoreRows(rows):
                return self.stored(rows)
            case TryRows(rows):
                return self.is_free(rows)
            case TryBlock(block):
                return self.is_read(block)
            case TakeFirst(kept, need):
                return self.first(kept, need)

    def _ask_in_place(self, planned: PlannedCall) -> None:
        """Errors of a search speak of the index, and so point at the call that names it."""
        try:
            self.ask(planned)
        except RelationalError as error:
            if is_retrieval(planned.call):
                raise error_here(self._planner.sql, planned.call, str(error)) from error
            raise

    # ---------------------------------------------------------------------------------------- the answers of steps
    def ask(self, planned: PlannedCall) -> None:
        """See ``AskCall``."""

    def ordered(self, block: exp.Select, parts: list[exp.Expr]) -> list[exp.Expr]:
        """See ``OrderPredicates``."""
        return parts

    def stored(self, rows: exp.Select) -> exp.Expr:
        """See ``StoreRows``."""
        return rows.subquery(f"__rows_{id(rows)}")

    def is_free(self, rows: exp.Select) -> bool:
        """See ``TryRows``."""
        return False

    def is_read(self, block: exp.Select) -> bool:
        """See ``TryBlock``."""
        return True

    def first(self, kept: exp.Select, need: int) -> exp.Expr:
        """See ``TakeFirst``."""
        return self.stored(kept)
