"""Semantic joins: ``LLM_FILTER`` over columns of two tables asks about pairs, of which there are many.

Blocking asks only about candidates: for every row of one side, the k rows of the other that a cheap similarity finds
(the user gives it, for instance a vector index). The other pairs count as false. That is the one rewrite that can
change a result, so it runs only when the user asks for it, and its recall is estimated: some of the other pairs are
asked too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp

from vllm_relational.records import RelationalError
from vllm_relational.sql.blocks import KEY
from vllm_relational.sql.functions import is_predicate

# (texts of one side, texts of the other, k) -> for each text of the first, positions in the second, best first.
Candidates = Callable[[list[str], list[str], int], Sequence[Sequence[int]]]
MAX_ENUMERATED = 10_000_000
NARROWER = "add a condition that DuckDB can evaluate, such as a.kind = b.kind"


@dataclass(frozen=True)
class Blocked:
    """Pairs by what is done with them. ``candidates`` and ``audited`` are asked, ``left_out`` count as false."""

    candidates: pa.Table
    audited: pa.Table
    left_out: pa.Table


def two_sides(function: str, columns: Sequence[exp.Expr], block: exp.Select) -> tuple[list[int], list[int]] | None:
    """The places of the arguments of each of the two tables that a semantic join reads; None for other calls.

    A row and what a LATERAL table, such as its passages, has for it are no pair to be found.
    """
    tables = [column.table.casefold() if isinstance(column, exp.Column) else "" for column in columns]
    names = list(dict.fromkeys(tables))
    if not is_predicate(function) or len(names) != 2 or "" in names or _laterals(block).intersection(names):
        return None
    left = [place for place, table in enumerate(tables) if table == names[0]]
    return left, [place for place in range(len(tables)) if place not in left]


def _laterals(block: exp.Select) -> set[str]:
    """The names of the tables of a block that are computed for each row of the tables before them."""
    sources = [join.this for join in block.args.get("joins") or []] + (block.args.get("laterals") or [])
    return {source.alias.casefold() for source in sources if isinstance(source, exp.Lateral)}


def check_rows(rows: int) -> None:
    """Raise ``RelationalError`` with the fix when a join has too many pairs to write them down."""
    if rows > MAX_ENUMERATED:
        raise RelationalError(f"the join has {rows:,} pairs, more than {MAX_ENUMERATED:,}: {NARROWER}")


def check_pairs(pairs: int, most: int) -> None:
    """Raise ``RelationalError`` with the fix when a join without candidates would ask too much."""
    if pairs > most:
        raise RelationalError(
            f"the join would ask about {pairs:,} pairs, more than max_pairs = {most:,}: {NARROWER}, give "
            "candidates=FUNCTION to ask about likely pairs only, or raise max_pairs"
        )


def choose(inputs: pa.Table, sides: tuple[list[int], list[int]], candidates: Candidates, k: int, audit: int) -> Blocked:
    """Split the pairs; ``audit`` of those that are no candidates are drawn at random, always the same."""
    arguments = [name for name in inputs.column_names if name != KEY]
    left, right = (_texts(inputs, [arguments[place] for place in side]) for side in sides)
    lefts, rights = list(dict.fromkeys(left)), list(dict.fromkeys(right))
    found = candidates(lefts, rights, min(k, len(rights)))
    likely = {(lefts[i], rights[j]) for i, row in enumerate(found) for j in row if 0 <= j < len(rights)}
    is_likely = np.fromiter((pair in likely for pair in zip(left, right, strict=True)), bool, len(left))
    others = np.flatnonzero(~is_likely)
    drawn = np.sort(np.random.default_rng(0).choice(others, size=min(audit, len(others)), replace=False))
    rest = np.setdiff1d(others, drawn)
    return Blocked(*(inputs.take(pa.array(rows)) for rows in (np.flatnonzero(is_likely), drawn, rest)))


def _texts(inputs: pa.Table, names: list[str]) -> list[str]:
    """The arguments of one side as one text a pair."""
    texts = [pc.fill_null(inputs[name].cast(pa.string()), "") for name in names]
    return [str(text) for text in pc.binary_join_element_wise(*texts, " ").to_pylist()]


def recall_note(blocked: Blocked, found: int, missed: int) -> str:
    """What blocking did. found: candidates that hold; missed: audited pairs that hold."""
    pairs = blocked.candidates.num_rows + blocked.audited.num_rows + blocked.left_out.num_rows
    text = f"blocking: {blocked.candidates.num_rows:,} of {pairs:,} pairs are candidates"
    others = blocked.audited.num_rows + blocked.left_out.num_rows
    if not blocked.audited.num_rows:
        return f"{text}; recall {'1' if not others else 'not measured'}"
    likely = missed / blocked.audited.num_rows * others
    recall = found / (found + likely) if found + likely else 1.0
    return f"{text}; {missed} of {blocked.audited.num_rows} others asked hold: recall about {recall:.0%}"
