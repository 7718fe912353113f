"""Retrieved passages as columns of the table: fields whose order is planned like any other."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from vllm_relational.records import RelationalError
from vllm_relational.retrieval.index import TextIndex
from vllm_relational.retrieval.passages import texts_of
from vllm_relational.retrieval.sharing import shared_order


def retrieve_fields(
    table: pa.Table, question_column: str, index: TextIndex, k: int, *, name: str = "context", ordered: bool = False
) -> pa.Table:
    """``table`` with the ``k`` passages nearest to each question, as text columns ``context_1`` to ``context_k``.

    The passages of a row are evidence in no order: they stand in the columns so that rows which have some in common
    begin with the same (see ``sharing``), and the numbers in the names mean nothing. With ``ordered``, ``context_1`` is
    the nearest, ``context_2`` the next. A null question gets null passages, and so does every question of an index
    without passages. Raises ``RelationalError`` when a column of that name is there already, or as
    ``TextIndex.retrieve`` does.
    """
    questions = texts_of(table, question_column)
    names = [f"{name}_{place}" for place in range(1, k + 1)]
    _check_names(table, names)
    texts = index.passages.texts
    asked = {row: question for row, question in enumerate(questions) if question is not None and texts}
    found, _ = index.nearest(list(asked.values()), k)
    if not ordered:
        found = shared_order(found, np.array([len(text) for text in texts], np.int64))
    numbers = np.full((len(questions), k), -1, np.int64)
    numbers[list(asked)] = found
    values = pa.array(texts, pa.large_string())
    for place, column in enumerate(names):
        cells = pa.array(numbers[:, place], mask=numbers[:, place] < 0)
        table = table.append_column(column, values.take(cells))
    return table


def _check_names(table: pa.Table, names: list[str]) -> None:
    taken = [name for name in names if name in table.column_names]
    if taken:
        raise RelationalError(
            f"the table has a column {taken[0]!r} already: give the passages another name (name='passage', --name)"
        )
