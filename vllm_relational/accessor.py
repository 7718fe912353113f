"""``df.llm``: the questions that analysts ask most, on any pandas DataFrame.

The newest open ``RelationalLLM`` answers; ``df.llm.using(llm)`` names another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import pandas as pd

from vllm_relational.answer_format.statement import NO, WORDING, YES
from vllm_relational.config import QueryOptions
from vllm_relational.config.arguments import QueryArguments
from vllm_relational.config.signature import takes
from vllm_relational.llm import RelationalLLM
from vllm_relational.records import RelationalError

_takes_options = takes(QueryOptions, order=None)


@pd.api.extensions.register_dataframe_accessor("llm")
class LLMAccessor:
    """Asks questions of the rows of a DataFrame; every method takes the options of ``RelationalLLM.run``."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        self._llm: RelationalLLM | None = None

    def using(self, llm: RelationalLLM) -> LLMAccessor:
        """The same questions, answered by ``llm``."""
        accessor = LLMAccessor(self._frame)
        accessor._llm = llm
        return accessor

    @_takes_options
    def map(self, prompt: str, **options: Unpack[QueryArguments]) -> pd.Series:
        """Free text, one answer a row."""
        return self._ask(prompt, options)

    @_takes_options
    def filter(self, statement: str, **options: Unpack[QueryArguments]) -> pd.DataFrame:
        """The rows for which ``statement`` holds. Rows that failed are left out, with a warning."""
        holds = (self._ask(WORDING + statement, options, choices=(YES, NO)) == YES).to_numpy(dtype=bool)
        kept: pd.DataFrame = self._frame.loc[holds]
        return kept

    @_takes_options
    def classify(self, prompt: str, labels: Sequence[str], **options: Unpack[QueryArguments]) -> pd.Series:
        """One of ``labels`` for each row."""
        return self._ask(prompt, options, choices=labels)

    @_takes_options
    def score(self, prompt: str, low: int, high: int, **options: Unpack[QueryArguments]) -> pd.Series:
        """A whole number from ``low`` to ``high`` for each row, as nullable ``Int64``."""
        return self._ask(prompt, options, range=(low, high))

    def _ask(self, prompt: str, given: Mapping[str, Any], **decided: Any) -> pd.Series:
        """given: the user's options; decided: those that the method stands for."""
        for name in decided:
            if given.get(name) is not None:
                raise RelationalError(f"this method sets {name} itself: leave {name} out, or use df.llm.map")
        answers: pd.Series = (self._llm or RelationalLLM.newest()).query(self._frame, prompt, **{**given, **decided})
        return answers
