"""``retrieve(question, 'texts.index', k)``: the k passages nearest to a question, as fields of the row.

A call is an operator like those of the LLM functions: it is computed once over its distinct questions, so that all of
them are embedded in one batch and placed together, and then stands for a lookup. In a FROM it is a table of one row,
``q, retrieve(q.question, 'texts.index', 2) AS p``; anywhere else it is a STRUCT. Both have the fields ``context_1`` to
``context_k``, of which each is an argument, and so a field of its own, for an LLM function.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa
from sqlglot import exp

from vllm_relational.records import RelationalError
from vllm_relational.sql.functions import RETRIEVE
from vllm_relational.sql.parse import error_here, is_retrieval, literal

USAGE = "retrieve(question, 'texts.index', 5)"
# Marks a call that stood in a FROM.
FROM_META = "from"
CONTEXT = "context_{}"
_TABLE_PARTS = ("this", "alias")


class Retrieves(Protocol):
    """What is needed of a vector index; ``vllm_relational.retrieval.retriever.Retriever`` is one."""

    def identity(self, path: str, k: int) -> str:
        """What the passages depend on beside the question; ``RelationalError`` when the index cannot give ``k``."""

    def passages(self, path: str, questions: pa.Array, k: int, ordered: bool) -> pa.Table:
        """``k`` text columns, a row a question."""


@dataclass(frozen=True)
class Retrieval:
    """What a call of ``retrieve`` looks for; to an operator what ``CallQuestion`` is.

    path:    of the index, as written; k: passages a question.
    ordered: by rank, else placed so that rows share them.
    state:   of the index, see ``Retrieves.identity``; source: what searches in it.
    """

    path: str
    k: int
    ordered: bool
    state: str
    source: Retrieves = field(compare=False, repr=False)

    function = RETRIEVE
    reads = ("question",)
    aggregates = has_layout = False

    @property
    def template(self) -> str:
        """What the list of operators shows in place of a prompt."""
        return self.path

    def identity(self) -> str:
        """A text that is equal for equal searches."""
        return json.dumps([self.function, self.state, self.k, self.ordered])

    def sql_type(self) -> str:
        """The DuckDB type of the passages."""
        return f"STRUCT({', '.join(f'{name} VARCHAR' for name in self.names)})"

    @property
    def names(self) -> list[str]:
        """Of the fields."""
        return [CONTEXT.format(place) for place in range(1, self.k + 1)]

    def search(self, questions: pa.Array) -> list[dict[str, str]]:
        """The passages of each question."""
        found = self.source.passages(self.path, questions, self.k, self.ordered)
        texts: dict[str, str] = {}  # a passage is one text in memory, of however many questions
        columns = [[texts.setdefault(text, text) for text in column.to_pylist()] for column in found.columns]
        return [dict(zip(self.names, row, strict=True)) for row in zip(*columns, strict=True)]


def retrieval_of(call: exp.Anonymous, sql: str, source: Retrieves) -> tuple[Retrieval, exp.Expr]:
    """What a call looks for, and its question; raises ``SQLError`` at the call when it is wrong."""
    given = list(call.expressions)
    ordered = _ordered(given.pop()) if len(given) == 4 else False
    if len(given) != 3 or ordered is None or given[0].is_star:
        raise error_here(sql, call, f"retrieve takes a question, an index and a number: write {USAGE}")
    path, k = literal(given[1]), literal(given[2])
    if not isinstance(path, str):
        raise error_here(sql, call, f"the index of retrieve is not a path in quotes: write {USAGE}")
    if not isinstance(k, int):
        raise error_here(sql, call, f"the number of passages of retrieve is not a whole number: write {USAGE}")
    try:
        return Retrieval(path, k, ordered, source.identity(path, k), source), given[0]
    except RelationalError as error:
        raise error_here(sql, call, str(error)) from None


def _ordered(given: exp.Expr) -> bool | None:
    """The value of ``ordered := true``; None for anything else."""
    named = isinstance(given, exp.PropertyEQ | exp.EQ | exp.Kwarg) and given.this.name.casefold() == "ordered"
    value = given.expression if named else None
    return bool(value.this) if isinstance(value, exp.Boolean) else None


def check_type(call: exp.Expr, sql: str, kind: str) -> None:
    """Raise ``SQLError`` unless the question, of that type, is a text."""
    if kind not in ("VARCHAR", '"NULL"'):
        raise error_here(sql, call, f"the question of retrieve is {kind}, not a text: CAST(... AS VARCHAR)")


# ------------------------------------------------------------------------------------------------------ in a FROM
def spell_tables(tree: exp.Expr, sql: str) -> None:
    """``FROM q, retrieve(...) AS p`` -> ``FROM q, LATERAL (SELECT unnest(retrieve(...))) AS p``, in place.

    Raises ``SQLError`` for what the function does not have: samples, ordinality.
    """
    for call in [node for node in tree.find_all(exp.Anonymous) if is_retrieval(node)]:
        table = call.parent
        if not isinstance(table, exp.Table | exp.Lateral):
            continue
        held = table.parent
        if any(table.args.get(key) for key in table.args if key not in _TABLE_PARTS):
            raise error_here(sql, call, "retrieve in FROM takes a name and names for its columns, nothing else")
        if not isinstance(held, exp.From | exp.Join) or not isinstance(held.parent, exp.Select):
            raise error_here(sql, call, "retrieve cannot stand in a join inside of parentheses: leave them out")
        body = exp.Subquery(this=_as_row(call))
        if isinstance(held, exp.From):
            body.set("alias", _alias(table))
            held.set("this", body)
        else:
            held.set("this", exp.Lateral(this=body, alias=_alias(table)))


def _as_row(call: exp.Expr) -> exp.Select:
    call.meta[FROM_META] = True
    return exp.Select(expressions=[exp.Explode(this=call)])


def _alias(table: exp.Expr) -> exp.TableAlias:
    """The alias as written, else the function's name, as for DuckDB's own table functions."""
    written: exp.TableAlias | None = table.args.get("alias")
    return written or exp.TableAlias(this=exp.to_identifier(RETRIEVE.lower()))


def passage_names(table: exp.Expr) -> list[str] | None:
    """The columns of ``retrieve`` in a FROM, as written or by default; None for another table."""
    call = next((node for node in table.find_all(exp.Anonymous) if FROM_META in node.meta), None)
    if call is None or not isinstance(table, exp.Lateral) or len(call.expressions) < 3:
        return None
    k = literal(call.expressions[2])
    names = [column.name for column in table.args["alias"].columns]
    return names + [CONTEXT.format(place) for place in range(1, k + 1)] if isinstance(k, int) else None
