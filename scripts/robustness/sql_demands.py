"""Statements of which little is needed, for ``sql_differential.py``: calls below conditions, joins, limits, windows.

A relation has the columns id (unique), g (a key of k, or NULL), t and o (texts) and a (an answer), and is wrapped
again and again: most of its answers are dropped by something outside. Tables: those of ``sql_statements``.
"""

from __future__ import annotations

import random
from itertools import count

COLUMNS = "id, g, t, o, a"
CHEAP = ["id < 7", "g = 2", "g IS NULL", "id % 3 = 1", "t LIKE '%1%'", "id BETWEEN 4 AND 9", "1 = 0", "o <> 'a b'"]


class _Calls:
    """Calls with tags of their own."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._tags = rng, count(1)

    def text(self, table: str = "") -> str:
        """A text, by a column or by another call's answer."""
        column, tag = f"{table}{self._rng.choice(['t', 'o'])}", f"Q{next(self._tags)}"
        return self._rng.choice(
            [
                f"LLM('{tag} {{1}}', {column})",
                f"LLM('{tag} {{1}}', {column})",
                f"LLM_CLASSIFY('{tag}', ['yes', 'no'], {column})",
                f"LLM_SCORE('{tag}', 1, 4, {column})::VARCHAR",
                f"LLM('{tag} {{1}} {{2}}', {table}o, {table}t)",
                f"CASE WHEN {table}g > 1 THEN LLM('{tag}', {column}) ELSE 'none' END",
                f"coalesce({table}a, LLM('{tag}', {column}))" if table else f"LLM('{tag}', {column})",
                f"LLM('{tag}', LLM('Q{next(self._tags)}', {column}))",
            ]
        )

    def truth(self) -> str:
        """A condition on columns of the relation, in any place of a three-valued formula."""
        tag, column = f"Q{next(self._tags)}", self._rng.choice(["t", "o"])
        asks, cheap = f"LLM_FILTER('{tag}', {column})", self._rng.choice(CHEAP)
        return self._rng.choice(
            [
                asks,
                f"NOT {asks}",
                f"(g = 3 OR (g = 1 AND {asks}))",
                f"NOT (g = 3 AND (g = 1 OR {asks}))",
                f"NOT ({cheap} OR {asks})",
                f"({cheap} AND {asks}) IS NOT TRUE",
                f"({cheap} OR {asks}) IS NOT FALSE",
                f"CASE WHEN {cheap} AND {asks} THEN g > 1 ELSE g = 0 END",
                f"LLM_SCORE('{tag}', 1, 5, {column}) BETWEEN 2 AND 4",
                f"LLM('{tag}', {column}) IN ('yes', 'maybe')",
                f"id BETWEEN 4 AND 3 + LLM_SCORE('{tag}', 1, 6, {column})",
                f"g NOT BETWEEN LLM_SCORE('{tag}', 1, 5, {column}) AND 3",
                f"(g IN (1, LLM_SCORE('{tag}', 1, 5, {column})) OR {cheap})",
            ]
        )


def statement(seed: int) -> str:
    """The statement with that number."""
    rng = random.Random(seed)
    calls = _Calls(rng)
    return rng.choice([_read, _read, _counted, _twice, _listed, _limited, _grouped, _unused])(
        rng, calls, _relation(rng, calls, rng.randint(0, 2))
    )


def _where(rng: random.Random, calls: _Calls) -> str:
    parts = rng.sample(CHEAP, rng.randint(0, 2)) + rng.choice([[], [calls.truth()], ["a = 'yes'"], ["a IS NULL"]])
    rng.shuffle(parts)
    return f" WHERE {' AND '.join(parts)}" if parts else ""


# ------------------------------------------------------------------------------------------------------- relations
def _relation(rng: random.Random, calls: _Calls, depth: int) -> str:
    if depth == 0:
        where = rng.choice(["", f" WHERE {calls.truth()}", f" WHERE {rng.choice(CHEAP)}"])
        rows = "SELECT d.id, CASE WHEN d.n < 6 THEN d.kid END AS g, d.text AS t, d.odd AS o FROM d"
        return f"SELECT id, g, t, o, {calls.text()} AS a FROM ({rows}) d{where}"
    wraps = [
        _narrowed,
        _narrowed,
        _unnested,
        _distinct,
        _first,
        _ranked,
        _united,
        _merged,
        _joined,
        _member,
        _cut,
        _answered,
    ]
    return rng.choice(wraps)(rng, calls, _relation(rng, calls, depth - 1))


def _narrowed(rng: random.Random, calls: _Calls, inner: str) -> str:
    return f"SELECT {COLUMNS} FROM ({inner}) x{_where(rng, calls)}"


def _answered(rng: random.Random, calls: _Calls, inner: str) -> str:
    return f"SELECT id, g, t, o, {calls.text('x.')} AS a FROM ({inner}) x{_where(rng, calls)}"


def _unnested(rng: random.Random, calls: _Calls, inner: str) -> str:
    """Rows with a list, an empty one and none at all."""
    lists = rng.choice(["CASE WHEN g > 0 THEN [g, 9] END", "range(id % 3)", "string_split(o, 'b')"])
    rows = f"SELECT *, unnest({lists}) AS made FROM ({inner}) x{_where(rng, calls)}"
    asks = f"SELECT id, g, t, o, {calls.text('x.')} AS a, unnest({lists}) AS made FROM ({inner}) x"
    return f"SELECT {COLUMNS} FROM ({rng.choice([rows, asks])}) y"


def _distinct(rng: random.Random, calls: _Calls, inner: str) -> str:
    return f"SELECT DISTINCT {COLUMNS} FROM ({inner}) x{_where(rng, calls)}"


def _first(rng: random.Random, calls: _Calls, inner: str) -> str:
    return rng.choice(
        [
            f"SELECT DISTINCT ON (g) {COLUMNS} FROM ({inner}) x ORDER BY g, id",
            f"SELECT {COLUMNS} FROM ({inner}) x QUALIFY row_number() OVER (PARTITION BY g ORDER BY id) <= 2",
            f"SELECT id, g, t, o, {calls.text('x.')} AS a FROM ({inner}) x "
            "QUALIFY row_number() OVER (PARTITION BY g ORDER BY id DESC) = 1",
        ]
    )


def _ranked(rng: random.Random, calls: _Calls, inner: str) -> str:
    number = rng.choice(["row_number() OVER (PARTITION BY g ORDER BY id)", "rank() OVER (ORDER BY id)"])
    rows = f"SELECT *, {number} AS rn FROM ({inner}) x{_where(rng, calls)}"
    return f"SELECT {COLUMNS} FROM ({rows}) y WHERE rn {rng.choice(['= 1', '<= 2', '= 3'])}"


def _united(rng: random.Random, calls: _Calls, inner: str) -> str:
    other = f"SELECT id + 100 AS id, g, t, o, {calls.text('x.')} AS a FROM ({_relation(rng, calls, 0)}) x"
    return f"SELECT {COLUMNS} FROM ({inner} {'UNION ALL' if 'LIMIT' not in inner else 'UNION'} {other}) u".replace(
        f"FROM ({inner} U", f"FROM (({inner}) U"
    )


def _merged(rng: random.Random, calls: _Calls, inner: str) -> str:
    having = rng.choice(["", " HAVING count(*) > 2", " HAVING g > 1", " HAVING max(id) < 20"])
    return f"SELECT min(id) AS id, g, min(t) AS t, max(o) AS o, max(a) AS a FROM ({inner}) x GROUP BY g{having}"


def _joined(rng: random.Random, calls: _Calls, inner: str) -> str:
    join = rng.choice(
        ["JOIN k ON k.id = x.g", "LEFT JOIN k ON k.id = x.g AND k.kind = 1", "JOIN k ON k.kind = x.g - 1"]
    )
    condition = rng.choice(["k.kind = 1", "k.price < 5", "x.id < 9", "k.name IS NULL", "TRUE"])
    tables = f"FROM ({inner}) x {join} WHERE {condition}"
    rows = f"SELECT x.*, row_number() OVER (PARTITION BY x.id ORDER BY k.id) AS rn {tables}"
    return f"SELECT {COLUMNS} FROM ({rows}) y WHERE rn = 1" if "kind = x.g" in join else f"SELECT x.* {tables}"


def _member(rng: random.Random, calls: _Calls, inner: str) -> str:
    keys = f"SELECT k.id FROM k WHERE k.kind = {rng.randint(0, 2)}"
    test = rng.choice(
        [
            f"WHERE x.g IN ({keys})",
            f"WHERE x.g NOT IN ({keys})",
            f"WHERE EXISTS ({keys} AND k.id = x.g)",
            f"WHERE NOT EXISTS ({keys} AND k.id = x.g)",
            f"SEMI JOIN ({keys}) k ON k.id = x.g",
            f"ANTI JOIN ({keys}) k ON k.id = x.g",
            f"WHERE x.id < (SELECT max(id) FROM ({keys}) z)",
        ]
    )
    return f"SELECT {COLUMNS} FROM ({inner}) x {test}"


def _cut(rng: random.Random, calls: _Calls, inner: str) -> str:
    cut = rng.choice(["LIMIT 4", "LIMIT 1 + 2", "LIMIT 3 OFFSET 2", "FETCH FIRST 2 ROWS ONLY"])
    return f"(SELECT {COLUMNS} FROM ({inner}) x ORDER BY {rng.choice(['id', 'g NULLS FIRST, id DESC'])} {cut})"


# ------------------------------------------------------------------------------------------------------ statements
def _read(rng: random.Random, calls: _Calls, rows: str) -> str:
    items = rng.choice(["*", "id", "id, a", "g, a", f"id, {calls.text('x.')} AS b", "id, a || '!' AS c"])
    return f"SELECT {items} FROM ({rows}) x{_where(rng, calls)}"


def _counted(rng: random.Random, calls: _Calls, rows: str) -> str:
    value = rng.choice(
        ["count(*)", "count(a)", "max(a)", "sum(id)", "count(DISTINCT g)", "max(a) FILTER (WHERE g = 1)"]
    )
    return f"SELECT {value} AS v FROM ({rows}) x{_where(rng, calls)}"


def _twice(rng: random.Random, calls: _Calls, rows: str) -> str:
    outer = rng.choice(
        [
            "SELECT p.id, q.a FROM x p JOIN x q ON p.id = q.id WHERE p.id < 5",
            "SELECT id, a FROM x WHERE id < 3 UNION ALL SELECT id, a FROM x WHERE id = 8",
            "SELECT count(*) AS c FROM x WHERE EXISTS (SELECT 1 FROM x y WHERE y.id = x.id + 1 AND y.g = 1)",
            "SELECT id FROM x WHERE id IN (SELECT id + 1 FROM x WHERE a = 'yes') AND g = 2",
            "SELECT (SELECT max(a) FROM x WHERE g = 1) AS m, (SELECT count(*) FROM x) AS n",
        ]
    )
    return f"WITH x AS ({rows}) {outer}"


def _listed(rng: random.Random, calls: _Calls, rows: str) -> str:
    return f"WITH y(i, h, u, v, w) AS ({rows}) SELECT i, {rng.choice(['w', 'u', '1 AS one'])} FROM y WHERE i < 6"


def _limited(rng: random.Random, calls: _Calls, rows: str) -> str:
    items = rng.choice(["id, a", "*", f"id, {calls.text('x.')} AS b", f"id AS g, {calls.text('x.')} AS t"])
    window = rng.choice(["", ", row_number() OVER (ORDER BY id) AS n"])
    cut = rng.choice(["LIMIT 3", "LIMIT 1 + 1", "LIMIT 2 OFFSET 1", "FETCH FIRST 2 ROWS ONLY", "LIMIT 20%"])
    order = "id" if "AS g" in items else rng.choice(["id", "g DESC NULLS LAST, id"])
    return f"SELECT {items}{window} FROM ({rows}) x{_where(rng, calls)} ORDER BY {order} {cut}"


def _grouped(rng: random.Random, calls: _Calls, rows: str) -> str:
    value = rng.choice(["LLM('Q90 {1}', g::VARCHAR)", "max(a)", "max(LLM('Q91', o))", "LLM('Q92', max(t))", "count(*)"])
    cut = rng.choice(["", " ORDER BY sum(id), g LIMIT 2", " HAVING count(*) > 4", " HAVING g = 1"])
    return f"SELECT g, {value} AS v FROM ({rows}) x GROUP BY g{cut}"


def _unused(rng: random.Random, calls: _Calls, rows: str) -> str:
    return rng.choice(
        [
            f"WITH x AS ({rows}) SELECT id FROM k WHERE id < 3",
            f"WITH x AS ({rows}), y AS (SELECT id, a FROM x) SELECT count(*) AS n FROM y",
            f"SELECT id FROM k WHERE EXISTS (SELECT a FROM ({rows}) x WHERE x.g = k.id)",
            f"SELECT id FROM ({rows}) x WHERE 1 = 0",
            f"SELECT one FROM (SELECT 1 AS one, {calls.text()} AS b FROM ({rows}) x) z WHERE one = 2",
        ]
    )
