"""PIVOT and UNPIVOT as DuckDB has them: also with ORDER BY and LIMIT, in CREATE TABLE AS and INSERT, and behind WITH.

sqlglot knows them as a statement by itself, and in parentheses in a FROM. Elsewhere they are a query here,
``SELECT * FROM (PIVOT ...) ORDER BY ...``.
"""

from __future__ import annotations

from typing import Any

from sqlglot import exp
from sqlglot.tokenizer_core import TokenType

_BEHIND = (TokenType.ORDER_BY, TokenType.LIMIT, TokenType.FETCH, TokenType.OFFSET)


def pivot_parsers(base: Any, span: str, made: str) -> dict[str, Any]:
    """Methods, and the words that begin a query, for a parser derived from ``base``.

    span: the key of a node's place in the text among its meta; made: marks nodes that are not in the text.
    """

    def parse_pivot(parser: Any, is_unpivot: bool | None = None) -> exp.Expr:
        start, before = parser._prev.start, parser._tokens[parser._index - 2] if parser._index > 1 else None
        pivot = base._parse_simplified_pivot(parser, is_unpivot)
        pivot.meta[span] = (start, parser._prev.end + 1)
        in_brackets = before is not None and before.token_type == TokenType.L_PAREN
        if in_brackets and not parser._match_set(_BEHIND, advance=False):
            return pivot  # type: ignore[no-any-return]
        query = exp.Select(expressions=[exp.Star()]).from_(exp.Subquery(this=pivot), copy=False)
        query.meta[made] = True
        return parser._parse_query_modifiers(query)  # type: ignore[no-any-return]

    def parse_behind_as(parser: Any) -> exp.Expr | None:
        if parser._match_set((TokenType.PIVOT, TokenType.UNPIVOT)):
            return parse_pivot(parser, parser._prev.token_type == TokenType.UNPIVOT)
        return base._parse_ddl_select(parser)  # type: ignore[no-any-return]

    def parse_insert_table(parser: Any) -> exp.Expr | None:
        parser.names_target = True
        try:
            return base._parse_insert_table(parser)  # type: ignore[no-any-return]
        finally:
            parser.names_target = False

    def parse_pivots(parser: Any) -> list[exp.Pivot] | None:
        """Of a table; behind the table that an INSERT fills they begin its query."""
        return None if getattr(parser, "names_target", False) else base._parse_pivots(parser)

    return {
        "_parse_simplified_pivot": parse_pivot,
        "_parse_ddl_select": parse_behind_as,
        "_parse_insert_table": parse_insert_table,
        "_parse_pivots": parse_pivots,
        "SELECT_START_TOKENS": {*base.SELECT_START_TOKENS, TokenType.PIVOT, TokenType.UNPIVOT},
    }
