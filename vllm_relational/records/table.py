"""table -> dedup: encoded columns, and the groups of rows that are asked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

NULL_CODE = -1


class Origin(StrEnum):
    """How a row came by its answer, see ``QueryResult.origins``."""

    ASKED = "asked"
    RESUMED = "resumed"
    CACHED = "cached"
    EXACT = "exact"
    NORMALIZED = "normalized"
    SEMANTIC = "semantic"
    FAILED = "failed"


@dataclass(frozen=True)
class EncodedTable:
    """The used columns, dictionary-encoded once.

    names:  the columns in original order (the order in which the question names them).
    codes:  int32 ``[num_columns, num_rows]``; ``NULL_CODE`` where the cell is null. Codes count distinct values in
            order of first appearance, so they are the same on every run.
    values: per column the distinct values as JSON texts, indexed by code.
    is_text: per column, whether its cells are texts: JSON puts dates, bytes and decimals in quotes as well. () for all.
    """

    names: tuple[str, ...]
    codes: np.ndarray
    values: tuple[Sequence[str], ...]
    is_text: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.is_text:
            object.__setattr__(self, "is_text", (True,) * len(self.names))

    @property
    def num_rows(self) -> int:
        return int(self.codes.shape[1])

    @property
    def num_columns(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Distinct:
    """Rows with equal values, or values that pass for equal, asked once.

    first_rows: int64 ``[num_distinct]``, ascending; the input row that is asked for each group: the group's identity.
                It is the first row with its values; of exact groups the first row at all.
    inverse:    int64 ``[num_rows]``; the group of each input row, or -1 for a row that is not asked.
    """

    first_rows: np.ndarray
    inverse: np.ndarray

    @property
    def num_distinct(self) -> int:
        return len(self.first_rows)


@dataclass(frozen=True)
class Grouping:
    """The groups that are asked, and the steps of deduplication that made them.

    levels: by step ('exact', 'normalized', 'semantic'), from fine to coarse, the inverse index after that step: int64
            ``[num_rows]``, -1 for a row that is not asked. The last step's groups are those of ``distinct``.
    """

    distinct: Distinct
    levels: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class MergeExample:
    """A row that inherits its answer, and what it does not share with the row that is asked.

    origin:       the step of deduplication that joined them.
    similarity:   cosine of their embeddings; None where that was not compared.
    asked, merged: by column, for the columns that differ, the two JSON texts.
    """

    row: int
    source_row: int
    origin: str
    similarity: float | None
    asked: Mapping[str, str]
    merged: Mapping[str, str]


@dataclass(frozen=True)
class DedupReport:
    """What deduplication did.

    mode:      'exact', 'normalized' or 'semantic'.
    settings:  what the user chose, in words.
    merged:    rows that inherit an answer, by the step that joined them to the row asked.
    too_long:  rows that the embedder does not read to their end: they are not merged by meaning.
    examples:  a few of the rows merged beyond exact equality, of the semantic ones the least similar.
    """

    mode: str
    settings: Mapping[str, str]
    merged: Mapping[str, int]
    too_long: int = 0
    examples: tuple[MergeExample, ...] = ()
