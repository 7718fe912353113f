"""Whether a statement keeps its meaning where sqlglot has to write it anew: DuckDB's own parser is asked.

Parts without calls go to DuckDB as the user wrote them (``source``). The clauses around calls are taken apart and put
together, so before anything is planned they are written by sqlglot once, with brackets around the operands of AND and
OR, and DuckDB must read the same from that as from the user's text. A node for which it does not is never written
by sqlglot: a plan that would have to is refused, with the place.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import duckdb
from sqlglot import exp

from vllm_relational.sql.parse import CHANGED, calls, error_here, sql_of, syntax_error
from vllm_relational.sql.session import Session
from vllm_relational.sql.source_text import OPENED_META, SOURCE_META, source_of, written

# Nodes that plans take apart or build anew.
_REBUILT = (
    *(exp.Query, exp.With, exp.CTE, exp.From, exp.Join, exp.Lateral, exp.Table, exp.Alias, exp.Paren, exp.Connector),
    *(exp.Where, exp.Having, exp.Qualify, exp.Group, exp.Order, exp.Ordered, exp.Limit, exp.Offset),
)
# Written differently without another meaning.
_PLACES, _NAMES = ("query_location", "query_location_length"), ("type_name", "path")


def check_meaning(connection: Session, tree: exp.Expr, sql: str) -> None:
    """Mark what must not be written anew; raises ``SQLError`` where the query itself is such a part, or none."""
    query = _query_of(tree)
    if query is None:
        return
    read = _reading(connection, written(query))
    wrong = syntax_error(sql) if read is None else None  # sqlglot lets pass what DuckDB does not
    if wrong is not None:
        raise wrong
    nodes = list(_rebuilt(query))
    if read is None or _same(connection, query, nodes, read):
        return
    for node in [node for node in nodes if not _same(connection, query, [node], read)]:
        source = source_of(node)
        if isinstance(node, exp.Select) or source is None:
            raise error_here(sql, node, CHANGED)
        node.meta[SOURCE_META] = dataclasses.replace(source, is_faithful=False)


def _query_of(tree: exp.Expr) -> exp.Expr | None:
    """The query in a statement: that is all that DuckDB writes down."""
    held = tree if isinstance(tree, exp.Query) else tree.args.get("expression") or tree.args.get("this")
    return held if isinstance(held, exp.Query) else None


def _rebuilt(query: exp.Expr) -> Iterator[exp.Expr]:
    """The nodes around calls, and the other clauses of their blocks."""
    around = {id(node) for call in calls(query) for node in _above(call)}
    for node in query.walk():
        block = node.find_ancestor(exp.Select)
        if isinstance(node, _REBUILT) and (id(node) in around or (_is_clause(node) and id(block) in around)):
            yield node


def _above(node: exp.Expr | None) -> Iterator[exp.Expr]:
    while node is not None:
        yield node
        node = node.parent


def _is_clause(node: exp.Expr) -> bool:
    return not isinstance(node, exp.Query | exp.Table | exp.Alias | exp.Paren)


def _same(connection: Session, query: exp.Expr, nodes: list[exp.Expr], read: Any) -> bool:
    for node in nodes:
        node.meta[OPENED_META] = True
    try:
        return bool(_reading(connection, written(query)) == read)
    finally:
        for node in nodes:
            del node.meta[OPENED_META]


def _reading(connection: Session, text: str) -> Any:
    """What DuckDB reads from a query; None for one that it cannot read, which binding will say, or not write down."""
    found = connection.connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [text]).fetchall()[0][0]
    read = json.loads(found)
    return None if read["error"] else _without_places(read)


def name_of(connection: Session, item: exp.Expr) -> str:
    """The name that DuckDB gives to a column without alias."""
    query = "SELECT json_deserialize_sql(json_serialize_sql(?::VARCHAR))"
    try:
        text: str = connection.connection.execute(query, [f"SELECT {sql_of(item)}"]).fetchall()[0][0]
    except duckdb.Error:  # binding will say
        return sql_of(item)
    return text.removeprefix("SELECT ")


def _without_places(read: Any, name: str = "") -> Any:
    if isinstance(read, dict):
        return {key: _without_places(part, key) for key, part in read.items() if key not in _PLACES}
    if isinstance(read, list):
        return [_without_places(part, name) for part in read]
    return read.casefold() if isinstance(read, str) and name in _NAMES else read
