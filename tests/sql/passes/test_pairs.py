"""The pairs of ``tests/fixtures/sql``: what each pass of the optimiser makes of a statement, and what it leaves alone.

A file begins with what its rule does. Then every ``-- before`` has an ``-- after``, or ``-- inputs``: the query for the
rows that its first call is asked for. ``-- unchanged`` is a statement that the rule must not touch. Comments above a
pair say why. The tables are those of ``tests/sql/conftest.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pytest
import sqlglot
from sqlglot import exp

import vllm_relational.sql.passes
from vllm_relational.sql.binding import Binding
from vllm_relational.sql.blocks import Aggregates, condition_of, input_query, set_condition, site_of
from vllm_relational.sql.normalise import normalise
from vllm_relational.sql.parse import calls, is_retrieval, parse, parts_of, sql_of
from vllm_relational.sql.passes.dead import bury, dead_calls
from vllm_relational.sql.passes.guards import guards_of
from vllm_relational.sql.passes.inner_limit import push_limits
from vllm_relational.sql.passes.late import apart, late_items, may_be_late, read_rows
from vllm_relational.sql.passes.lateral import read_from, rows_of_limit
from vllm_relational.sql.passes.limit import split
from vllm_relational.sql.passes.order import Estimate, by_inputs, by_rank
from vllm_relational.sql.passes.prune import drop_unread
from vllm_relational.sql.passes.pushdown import push_conditions
from vllm_relational.sql.passes.unknown import hidden
from vllm_relational.sql.session import Session

PAIRS = Path(__file__).parents[2] / "fixtures" / "sql"
# What they change is no SQL: which pairs of rows are asked, and what a prompt begins with.
NO_SQL = {"blocking", "layout"}
# Read by other passes.
SHARED = {"sources"}
SECTION = re.compile(r"-- (before|after|inputs|unchanged)$")
NUMBERS = re.compile(r"-- (have|cost|keep): ([\d., ]+)$")


@dataclass
class Pair:
    """A statement, what becomes of it (``kind``: 'after', 'inputs' or 'unchanged'), and numbers that the rule reads."""

    before: str = ""
    kind: str = ""
    after: str = ""
    numbers: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shop:
    """What a pass is handed beside the tree."""

    session: Session
    sql: str
    numbers: dict[str, list[float]]

    @property
    def aggregates(self) -> Aggregates:
        return Aggregates(lambda: self.session.macros.aggregates)

    @property
    def binding(self) -> Binding:
        return Binding(self.session, self.sql)

    def holds(self, condition: str) -> bool:
        """Whether DuckDB takes a condition of constants for TRUE."""
        return bool(self.session.execute(f"SELECT ({condition}) IS TRUE").fetchall()[0][0])

    def is_whole(self, query: exp.Expr) -> bool:
        """Whether a query binds by itself."""
        return self.binding.has_names(query.unnest())


# ------------------------------------------------------------------------------------------------ passes, one by one
def dead(tree: exp.Expr, shop: Shop) -> None:
    bury(dead_calls(tree, shop.aggregates, shop.holds))


def inner_limit(tree: exp.Expr, shop: Shop) -> None:
    push_conditions(tree, shop.aggregates, shop.is_whole)
    push_limits(tree, shop.aggregates)


def late(tree: exp.Select, shop: Shop) -> None:
    items = late_items(tree, shop.aggregates) if may_be_late(tree) else []
    if items:
        rows, items = apart(tree, items, shop.aggregates, lambda item: shop.binding.name_of(tree, item))
        read_rows(tree, rows.subquery("stored"), items)


def lateral(tree: exp.Select, shop: Shop) -> None:
    rows = rows_of_limit(tree, shop.aggregates)
    if rows is not None:
        read_from(tree, rows.subquery("stored"))


def limit(tree: exp.Select, shop: Shop) -> None:
    expand, name = (lambda star: shop.binding.expanded(star, tree)), (lambda item: shop.binding.name_of(tree, item))
    found = split(tree, shop.aggregates, expand, name)
    if found is None:
        return
    table = found.rows.subquery("stored")
    if found.kept is not None:
        found.kept.set("from_", exp.From(this=table))
        table = found.kept.subquery("passed")
    found.finish(tree, table)


def order(tree: exp.Select, shop: Shop) -> None:
    parts = condition_of(tree, "where")
    if "have" in shop.numbers:
        places = by_inputs(shop.numbers["have"])
    else:
        places = by_rank([Estimate(*seen) for seen in zip(shop.numbers["cost"], shop.numbers["keep"], strict=True)])
    set_condition(tree, "where", [parts[place] for place in places])


def prune(tree: exp.Expr, shop: Shop) -> None:
    drop_unread(tree)


def pushdown(tree: exp.Expr, shop: Shop) -> None:
    push_conditions(tree, shop.aggregates, shop.is_whole)


RULES: dict[str, Callable[[exp.Expr, Shop], None]] = {
    **{"dead": dead, "inner_limit": inner_limit, "late": late, "lateral": lateral, "limit": limit, "order": order},
    **{"prune": prune, "pushdown": pushdown, "semijoin": pushdown},
}


def inputs_of(tree: exp.Expr, shop: Shop) -> exp.Expr:
    """The query for the rows that the first call is asked for."""
    call = next(calls(tree))
    site = site_of(call, shop.aggregates)
    columns = call.expressions[:1] if is_retrieval(call) else parts_of(call, shop.sql).columns
    rows = input_query(site, columns, guards_of(call, shop.aggregates), eager=False, keeps_nulls=False)
    return shop.binding.bound(rows, site, keeps_rows=True)[0]


def read(sql: str) -> exp.Expr:
    """The tree that passes get."""
    tree = parse(sql)
    normalise(tree, sql)
    return tree


def normal(sql: str) -> str:
    """A statement as passes get it."""
    return sql_of(read(sql))


def rewritten(rule: str, pair: Pair, shop: Shop) -> str:
    """What the rule makes of a pair's statement."""
    tree = read(pair.before)
    if rule == "unknown":
        with hidden(tree, "unknown") as is_whole:
            return sql_of(tree) if is_whole else normal(pair.before)
    if pair.kind == "inputs":
        return sql_of(inputs_of(tree, shop))
    RULES[rule](tree, shop)
    return sql_of(tree)


# ------------------------------------------------------------------------------------------------------------- the test
def pairs_in(path: Path) -> Iterator[Pair]:
    """The pairs of a file, in order."""
    pair, section, numbers = Pair(), "", {}
    for line in [*path.read_text(encoding="utf-8").splitlines(), "-- before"]:
        found, given = SECTION.match(line), NUMBERS.match(line)
        if found is None and given is None and not line.startswith("--"):
            place = "before" if section in ("before", "unchanged") else "after"
            setattr(pair, place, f"{getattr(pair, place)}{line}\n".lstrip() if section else "")
        elif given is not None:
            numbers[given[1]] = [float(number) for number in given[2].split(",")]
        elif found is not None:
            if found[1] in ("before", "unchanged"):
                if pair.before:
                    yield pair
                pair, numbers = Pair(numbers=numbers), {}
            section, pair.kind = found[1], found[1]


def plain(sql: str) -> exp.Expr:
    """The tree of a statement whatever its brackets, spaces and capitals of keywords are."""
    tree = sqlglot.parse_one(sql, read="duckdb")
    for brackets in reversed(list(tree.find_all(exp.Paren))):
        brackets.replace(brackets.this)
    return tree


def pretty(tree: exp.Expr) -> str:
    return tree.sql(dialect="duckdb", pretty=True)


FILES = sorted(PAIRS.glob("*.sql"))
CASES = [
    pytest.param(path.stem, pair, id=f"{path.stem}-{place}")
    for path in FILES
    for place, pair in enumerate(pairs_in(path), 1)
]


@pytest.mark.parametrize(("rule", "pair"), CASES)
def test_a_pass_makes_of_a_statement_what_its_file_says(shop: duckdb.DuckDBPyConnection, rule, pair):
    made = plain(rewritten(rule, pair, Shop(Session(shop), pair.before, pair.numbers)))
    expected = plain(normal(pair.before) if pair.kind == "unchanged" else pair.after)
    assert pretty(made) == pretty(expected)
    assert made == expected


def test_every_pass_has_pairs_and_says_when_it_does_not_apply():
    passes = {path.stem for path in Path(vllm_relational.sql.passes.__file__).parent.glob("[a-z]*.py")}
    assert {path.stem for path in FILES} == passes - NO_SQL - SHARED
    for path in FILES:
        kinds = [pair.kind for pair in pairs_in(path)]
        assert len(kinds) >= 2 and ("unchanged" in kinds or set(kinds) == {"inputs"}), path
        assert path.read_text(encoding="utf-8").startswith("-- "), path
