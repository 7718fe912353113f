"""What DuckDB says of parts of a statement: columns, their names and types, and whether names mean anything there."""

from __future__ import annotations

from typing import Any

import duckdb
from sqlglot import exp

from vllm_relational.sql.blocks import KEY, SOURCES, Site, condition_of, per_outer_row, set_condition, visible_ctes
from vllm_relational.sql.parse import engine_error, sql_of
from vllm_relational.sql.passes.lateral import conditions_on_rows
from vllm_relational.sql.session import Session

# Conditions of an outer query that the input of a subquery in FROM is limited to.
KEPT_META = "kept"


class Binding:
    """Asks DuckDB about one statement. sql: as written, for errors."""

    def __init__(self, connection: Session, sql: str) -> None:
        self._connection, self._sql = connection, sql

    def has_names(self, query: exp.Select) -> bool:
        """Whether the query binds by itself."""
        try:
            self._described(query)
        except duckdb.Error:
            return False
        return True

    def stands_alone(self, rows: exp.Select) -> bool:
        """Whether rows whose select list is still open read no column of a query around them."""
        rows.set("expressions", [exp.true()])
        return self.has_names(rows)

    def is_column(self, block: exp.Select, name: str) -> bool:
        """Whether the FROM of a block has a column of that name."""
        if block.args.get("from_") is None:
            return False
        return self.has_names(_from(block, exp.column(name, quoted=True)))

    def name_of(self, block: exp.Select, item: exp.Expr) -> str:
        """The column name that DuckDB gives an item of a block's select list."""
        return str(self._columns(_from(block, item))[0][0])

    def expanded(self, star: exp.Expr, block: exp.Select) -> list[exp.Expr]:
        """``pr.*`` and ``*`` -> columns."""
        found: list[exp.Expr] = []
        for source in [star] if isinstance(star, exp.Column) else _all_stars(star, block):
            table = source.table if isinstance(source, exp.Column) else None
            names = [row[0] for row in self._columns(_from(block, source))]
            found += [exp.column(name, table, quoted=True) for name in names]
        return found

    def bound(self, query: exp.Select, site: Site, keeps_rows: bool) -> tuple[exp.Select, list[str]]:
        """The input query, if need be for every row around its subquery, and the types of its arguments.

        keeps_rows: limit it to the rows that conditions of the outer query keep.
        """
        around: exp.Expr | None = site.block
        failure: duckdb.Error | None = None
        while around is not None:
            try:
                return query, [row[1] for row in self._described(query) if row[0] != KEY]
            except duckdb.Error as error:
                # Without a FROM of its own, what the tables around lack says more.
                failure = failure if failure and site.block.args.get("from_") else error
            around = around.find_ancestor(exp.Select)
            if isinstance(around, exp.Select):
                query = per_outer_row(query, around, site.block)
                if keeps_rows:
                    self._keep_rows(query, around, site.block)
        assert failure is not None
        raise engine_error(self._sql, failure) from failure

    def _keep_rows(self, query: exp.Select, outer: exp.Select, block: exp.Select) -> None:
        """Of the rows before a subquery in FROM, keep those that the conditions of WHERE on them alone keep."""
        for part in conditions_on_rows(outer, block):
            kept = condition_of(query, "where")
            set_condition(query, "where", [*kept, part])
            if self.has_names(query):
                query.meta.setdefault(KEPT_META, []).append(part)
            else:
                set_condition(query, "where", kept)

    def _columns(self, query: exp.Select) -> list[Any]:
        try:
            return self._described(query)
        except duckdb.Error as error:
            raise engine_error(self._sql, error) from error

    def _described(self, query: exp.Select) -> list[Any]:
        return self._connection.execute(f"DESCRIBE {sql_of(query)}").fetchall()


def _from(block: exp.Select, item: exp.Expr) -> exp.Select:
    """The item over the block's FROM."""
    query = exp.Select(expressions=[item.copy()])
    for key in SOURCES:
        held = block.args.get(key)
        query.set(key, [part.copy() for part in held] if isinstance(held, list) else held.copy() if held else None)
    query.set("with_", visible_ctes(block))
    return query


def _all_stars(star: exp.Expr, block: exp.Select) -> list[exp.Expr]:
    """``*`` over several tables, table by table, so that columns of one name stay apart."""
    sources = [block.args["from_"].this, *(join.this for join in block.args.get("joins") or [])]
    if len(sources) == 1 or star.args.get("except_") or not all(source.alias_or_name for source in sources):
        return [star]
    return [exp.Column(this=exp.Star(), table=exp.to_identifier(source.alias_or_name)) for source in sources]
