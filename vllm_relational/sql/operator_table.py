"""What is known of one question: its inputs and their answers, in memory and as the columns of its table ``op_N``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from vllm_relational.sql.merging import BEYOND_EXACT

ANSWERED, CUT, FAILED, BLOCKED = "answered", "cut", "failed", "not a candidate"


@dataclass
class OperatorTable:
    """The inputs of one question that are settled.

    name:     ``op_1``; place: with the database that it is in, ``llm.op_1``.
    answers:  by key, what SQL sees; None for a row that failed.
    failed:   the keys that failed, with the reason.
    inherited: the keys whose answer is another input's, with the settings that merged them (``Merging.identity``).
    lookups:  the SQL functions that know the answers, a plain one and a volatile one; none before there are any.
    lookup:   the one that statements use now, see ``AnswersDatabase.volatile``.
    noted:    the keys that were looked up since somebody wanted to know; None where nobody does.
    """

    name: str
    place: str
    sql_type: str
    arrow_type: pa.DataType
    answers: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    inherited: dict[str, str] = field(default_factory=dict)
    lookups: tuple[str, ...] = ()
    lookup: str = ""
    noted: set[str] | None = None

    def is_open(self, key: str, merging: str) -> bool:
        """Whether an input is to be asked: it has no answer, or one that it inherited under other settings."""
        return key not in self.answers or self.inherited.get(key, merging) != merging

    def look_up(self, keys: pa.Array) -> pa.Array:
        """The answers to a column of keys; null for a key that was not asked."""
        answers, wanted = self.answers, keys.to_pylist()
        if self.noted is not None:
            self.noted.update(wanted)
        return pa.array([answers.get(key) for key in wanted], self.arrow_type)


@dataclass(frozen=True)
class StoredAnswers:
    """What became of some inputs; one of each an input.

    inputs:  structs; reasons: '' for an answered input, ``BLOCKED`` for one that was not asked, else why it failed.
    origins: 'asked', 'cached' (from the result cache), or the step that it was inherited by: 'exact', 'normalized',
             'semantic'; None without answer.
    sources: the key of the input whose answer it is, its own where it was asked; None without answer.
    cut:     the keys whose answer is a text that was cut off at max_tokens; their status is 'cut'.
    """

    keys: Sequence[str]
    inputs: pa.Array
    answers: Sequence[Any]
    reasons: Sequence[str]
    origins: Sequence[str | None]
    sources: Sequence[str | None]
    cut: Collection[str] = ()

    def columns(self, answer_type: pa.DataType, merging: str) -> dict[str, pa.Array]:
        """The columns of an operator's table. merging: the settings behind inherited answers."""
        said = [CUT if key in self.cut else ANSWERED for key in self.keys]
        status = [
            reason if reason == BLOCKED else FAILED if reason else word
            for reason, word in zip(self.reasons, said, strict=True)
        ]
        return {
            "key": pa.array(self.keys, pa.string()),
            "inputs": self.inputs,
            "answer": pa.array(self.answers, answer_type),
            "status": pa.array(status, pa.string()),
            "reason": pa.array([reason or None for reason in self.reasons], pa.string()),
            "origin": pa.array(self.origins, pa.string()),
            "source": pa.array(self.sources, pa.string()),
            "merging": pa.array([merging if origin in BEYOND_EXACT else None for origin in self.origins], pa.string()),
        }
