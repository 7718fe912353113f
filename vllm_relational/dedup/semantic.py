"""Semantic deduplication: rows whose embeddings are close are asked once, found without a full self-join.

As in SemDeDup (arXiv 2303.09540), k-means cuts the rows into blocks and only rows of a block are compared; rows left
alone then look into their next nearest blocks. Differences: a group is a star, so no row joins over a chain of
neighbours, and the row asked is the one closest to the centre of its group among those within the threshold of all
its members. Cost: ``num_rows * ROWS_PER_BLOCK`` similarities, not ``num_rows ** 2``.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator, Sequence

import numpy as np

from vllm_relational.extras import import_faiss
from vllm_relational.records import EncodedTable

ROWS_PER_BLOCK = 1024
# So many rows are compared with each other at a time: bounds memory where k-means leaves a block large.
CHUNK = 2048
# Blocks that a row left alone looks into, its own included.
NEAREST_BLOCKS = 4
KMEANS_ROUNDS = 10
# Rows near the centre that are tried for representative at first, before those farther off.
CANDIDATES = 16
ROUNDING = 1e-6  # of a cosine in single precision: equal vectors are similar by 1


def text_columns(table: EncodedTable) -> tuple[str, ...]:
    """Columns to compare by meaning: columns of text with a value that is neither a number nor a date."""
    columns = zip(table.names, table.values, table.is_text, strict=True)
    return tuple(name for name, values, is_text in columns if is_text and any(_is_prose(value) for value in values))


def _is_prose(value: str) -> bool:
    if not value.startswith('"'):  # the null of a column
        return False
    text = json.loads(value).strip()
    return not _is_number(text) and not _is_date(text)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text or 0))
    except ValueError:
        return False


def _is_date(text: str) -> bool:
    """ISO 8601, as Python reads it; a date alone may have a Z too."""
    try:
        return bool(datetime.datetime.fromisoformat(text.removesuffix("Z")))
    except ValueError:
        return False


def row_texts(table: EncodedTable, rows: np.ndarray, columns: Sequence[str]) -> list[str]:
    """What an embedder reads of each row: one line a column, ``name: value``; the value alone if it is one column."""
    places = [table.names.index(name) for name in columns]
    texts = {place: [_plain(value) for value in table.values[place]] for place in places}
    codes = [table.codes[place, rows].tolist() for place in places]
    if len(places) == 1:
        return [texts[places[0]][code] for code in codes[0]]
    lines = [
        [f"{table.names[place]}: {texts[place][code]}" for code in column]
        for place, column in zip(places, codes, strict=True)
    ]
    return ["\n".join(row) for row in zip(*lines, strict=True)]


def _plain(value: str) -> str:
    return str(json.loads(value)) if value.startswith('"') else value


def similar_rows(
    vectors: np.ndarray, threshold: float, weights: np.ndarray, keys: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """For each row the row that is asked for it, itself or one within the threshold; int64 ``[num_rows]``.

    vectors:   float32 ``[num_rows, dimension]`` of length 1; rows of length 0 stay alone.
    threshold: least cosine similarity of a row and the row asked for it.
    weights:   int64 ``[num_rows]``: how many input rows stand behind each; they pull the centre of a group.
    keys:      int64 ``[num_rows]``: rows with different keys are never joined; None for no such limit.

    The same input gives the same groups. Raises ``RelationalError`` where faiss is needed and missing.
    """
    heads = np.arange(len(vectors))
    keys = np.zeros(len(vectors), np.int64) if keys is None else keys
    threshold = max(
        threshold - ROUNDING, float(np.finfo(np.float32).tiny)
    )  # above 0: a vector of length 0 is like nothing
    for rows in _rows_by_key(keys):
        heads[rows] = rows[_grouped(vectors[rows], threshold, seed)]
    return _central(vectors, heads, threshold, weights)


def _rows_by_key(keys: np.ndarray, least: int = 2) -> Iterator[np.ndarray]:
    """Rows of equal keys, where there are so many at least."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.diff(keys[order])) + 1
    return (rows for rows in np.split(order, ends) if len(rows) >= least)


def _grouped(vectors: np.ndarray, threshold: float, seed: int) -> np.ndarray:
    """The head of each row's group, an index into these rows; every row is within the threshold of its head."""
    if len(vectors) <= CHUNK:
        return _stars(vectors, threshold)
    nearest = _nearest_blocks(vectors, math.ceil(len(vectors) / ROWS_PER_BLOCK), seed)
    heads = np.arange(len(vectors))
    for rows in _rows_by_key(nearest[:, 0]):
        _join_block(vectors, rows, heads, threshold)
    _join_lonely(vectors, nearest, heads, threshold)
    return heads


def _nearest_blocks(vectors: np.ndarray, num_blocks: int, seed: int) -> np.ndarray:
    """The blocks whose centres are nearest to each row, nearest first; int64 ``[num_rows, NEAREST_BLOCKS]``."""
    faiss = import_faiss(f"semantic deduplication of more than {CHUNK:,} rows")
    kmeans = faiss.Kmeans(vectors.shape[1], num_blocks, niter=KMEANS_ROUNDS, seed=seed + 1, spherical=True)
    kmeans.train(vectors)
    found: np.ndarray = kmeans.index.search(vectors, min(NEAREST_BLOCKS, num_blocks))[1]
    return found


def _join_block(vectors: np.ndarray, rows: np.ndarray, heads: np.ndarray, threshold: float) -> None:
    """Group the rows of a block in place, a chunk at a time: first with the heads there are, then among themselves."""
    found = np.empty(0, np.int64)
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        if len(found):
            similarity, head = _best(vectors[chunk], vectors[found])
            joins = similarity >= threshold
            heads[chunk[joins]] = found[head[joins]]
            chunk = chunk[~joins]
        heads[chunk] = chunk[_stars(vectors[chunk], threshold)]
        found = np.concatenate([found, chunk[heads[chunk] == chunk]])


def _stars(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy stars: the row with most neighbours becomes a head and takes those still free; int64 ``[num_rows]``."""
    similar = vectors @ vectors.T >= threshold
    np.fill_diagonal(similar, False)
    neighbours = similar.sum(axis=1)
    heads, free = np.arange(len(vectors)), neighbours > 0
    for row in np.argsort(-neighbours, kind="stable")[: int(free.sum())].tolist():
        if free[row]:
            members = similar[row] & free
            heads[members] = row
            free[members] = free[row] = False
    return heads


def _best(queries: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each query the greatest similarity and the vector that has it."""
    similarity = queries @ vectors.T
    best = similarity.argmax(axis=1)
    return similarity[np.arange(len(queries)), best], best


def _join_lonely(vectors: np.ndarray, nearest: np.ndarray, heads: np.ndarray, threshold: float) -> None:
    """Rows that found no neighbour in their block join a head of another block, the most similar pairs first."""
    size = np.bincount(heads, minlength=len(heads))
    similarity, target = _nearest_heads(vectors, nearest, heads, np.flatnonzero(size == 1))
    close = np.flatnonzero(similarity >= threshold)
    for row in close[np.argsort(-similarity[close], kind="stable")].tolist():
        head = target[row]
        if size[row] == 1 and heads[head] == head:
            heads[row] = head
            size[head] += 1
            size[row] = 0


def _nearest_heads(
    vectors: np.ndarray, nearest: np.ndarray, heads: np.ndarray, lonely: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each lonely row the most similar head in its next blocks: similarity and head, both ``[num_rows]``."""
    similarity, target = np.full(len(heads), -1, np.float32), np.full(len(heads), -1, np.int64)
    is_head = heads == np.arange(len(heads))
    heads_of = {int(nearest[rows[0], 0]): rows[is_head[rows]] for rows in _rows_by_key(nearest[:, 0], least=1)}
    for rank in range(1, nearest.shape[1]):
        for places in _rows_by_key(nearest[lonely, rank], least=1):
            rows = lonely[places]
            there = heads_of.get(int(nearest[rows[0], rank]))
            if there is not None:
                _keep_better(vectors, rows, there, similarity, target)
    return similarity, target


def _keep_better(
    vectors: np.ndarray, rows: np.ndarray, there: np.ndarray, similarity: np.ndarray, target: np.ndarray
) -> None:
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        found, best = _best(vectors[chunk], vectors[there])
        better = found > similarity[chunk]
        similarity[chunk[better]], target[chunk[better]] = found[better], there[best[better]]


def _central(vectors: np.ndarray, heads: np.ndarray, threshold: float, weights: np.ndarray) -> np.ndarray:
    """Put in each head's place the row closest to the centre among those within the threshold of all members."""
    central: np.ndarray = heads.copy()
    for rows in _rows_by_key(heads):
        members = vectors[rows]
        closeness = members @ (weights[rows].astype(np.float32) @ members)
        place = _first_near_all(members, np.argsort(-closeness, kind="stable"), threshold)
        if place is not None:  # None: by rounding, not even the head is
            central[rows] = rows[place]
    return central


def _first_near_all(members: np.ndarray, order: np.ndarray, threshold: float) -> int | None:
    """The first place of ``order`` whose vector is within the threshold of all members; mostly among the first."""
    start, size = 0, CANDIDATES
    while start < len(order):
        places = order[start : start + size]
        near = (members @ members[places].T).min(axis=0) >= threshold
        if near.any():
            return int(places[near.argmax()])
        start, size = start + size, min(2 * size, CHUNK)
    return None
