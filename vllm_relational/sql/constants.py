"""Calls that read no column, in statements that are no query: UPDATE, DELETE, MERGE, VALUES, CREATE VIEW and others.

What such a call asks does not depend on a row: it is asked once, by a query of its own, and its answer stands in the
statement's text in its place. A view so keeps the answer that there was when it was made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlglot import exp
from sqlglot.tokenizer_core import TokenType

from vllm_relational.sql.blocks import sql_of
from vllm_relational.sql.parse import DIALECT, calls, tokens_of
from vllm_relational.sql.passes.unknown import type_of

NAME = "__v{}"


def constant_calls(tree: exp.Expr) -> list[exp.Anonymous]:
    """The calls of a statement, outermost ones only; none where one of them reads a column."""
    inner = {id(other) for call in calls(tree) for other in calls(call) if other is not call}
    found = [call for call in calls(tree) if id(call) not in inner]
    return found if all(_is_constant(call) for call in found) else []


def _is_constant(call: exp.Anonymous) -> bool:
    return call.find(exp.Column, exp.Star, exp.Query) is None and type_of(call) is not None and "start" in call.meta


def questions(found: list[exp.Anonymous]) -> exp.Select:
    """A query for the answers, one row."""
    return exp.Select(expressions=[exp.alias_(call.copy(), NAME.format(place)) for place, call in enumerate(found)])


def with_answers(sql: str, found: list[exp.Anonymous], row: Mapping[str, Any]) -> str:
    """The statement's text with the answers of ``questions`` in place of the calls; NULL for those that lack."""
    for place, call in sorted(enumerate(found), key=lambda pair: -pair[1].meta["start"]):
        start = call.meta["start"]
        sql = sql[:start] + _literal(row.get(NAME.format(place)), type_of(call) or "VARCHAR") + sql[_end(sql, start) :]
    return sql


def _literal(value: Any, kind: str) -> str:
    """A value as SQL that has its type."""
    if isinstance(value, dict | list):
        whole = exp.cast(exp.Literal.string(json.dumps(value, ensure_ascii=False)), "JSON")
        return sql_of(exp.cast(whole, kind, dialect=DIALECT))
    return sql_of(exp.cast(exp.convert(value), kind, dialect=DIALECT))


def _end(sql: str, start: int) -> int:
    """Where the call that begins at ``start`` ends."""
    depth = 0
    for token in tokens_of(sql):
        if token.start >= start:
            depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
            if depth == 0 and token.token_type == TokenType.R_PAREN:
                return int(token.end) + 1
    return len(sql)
