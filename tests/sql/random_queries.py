"""Random queries over the shop of ``conftest`` with one to five LLM calls, for tests of the optimiser.

Every query has one right result: where it has a LIMIT, its ORDER BY ends with a key.
"""

from __future__ import annotations

import random

CHEAP = [
    "r.ts > DATE '2023-01-15'",
    "r.stars >= 2",
    "r.id % 3 <> 1",
    "r.stars IS NULL",
    "r.text LIKE '%1%'",
    "r.id < 25",
]
FILTERS = [
    "LLM_FILTER('{text} is good', r.text)",
    "LLM_FILTER('{text} is long', r.text)",
    "LLM('Sentiment of {text}?', r.text) = 'yes'",
    "LLM_SCORE('How good is {text}?', 1, 5, r.text) > 2",
    "LLM_CLASSIFY('Mood of {text} at {stars}', ['glad', 'sad', 'cold'], r.text, r.stars) <> 'sad'",
    "NOT LLM_FILTER('{text} is rude', r.text)",
]
VALUES = [
    "LLM('Sum up {text}', r.text)",
    "LLM_SCORE('How good is {text}?', 1, 5, r.text)",
    "CASE WHEN r.stars > 2 THEN LLM('Praise {text}', r.text) WHEN r.stars < 2 THEN 'bad' END",
    "LLM_FILTER('{text} is good', r.text)",
    "coalesce(r.stars, LLM_SCORE('Guess {text}', 0, 4, r.text))",
    "LLM('Is it long?', LLM('Shorten {text}', r.text))",
    "upper(LLM_CLASSIFY('{text}', ['a', 'b'], r.text))",
]
AGGREGATES = [
    "avg(LLM_SCORE('How good is {text}?', 1, 5, r.text))",
    "count(*) FILTER (WHERE LLM_FILTER('{text} is good', r.text))",
    "max(CASE WHEN r.stars > 1 THEN LLM('Sum up {text}', r.text) END)",
    "LLM_AGG('Sum up {text}', r.text)",
    "sum(LLM_SCORE('Rate {text}', 1, 9, r.text)) FILTER (WHERE r.id % 2 = 0)",
]


def random_query(seed: int) -> str:
    """The query with that number."""
    rng = random.Random(seed)
    shapes = [_flat, _flat, _grouped, _joined, _cte, _derived, _limited, _limited, _exists, _union, _windowed, _nested]
    return rng.choice(shapes)(rng)


def _where(rng: random.Random, min_llm: int = 1) -> str:
    parts = rng.sample(CHEAP, rng.randint(0, 2)) + rng.sample(FILTERS, rng.randint(min_llm, 2))
    rng.shuffle(parts)
    if len(parts) > 2 and rng.random() < 0.4:
        parts = [f"({parts[0]} OR {parts[1]})", *parts[2:]]
    return f"WHERE {' AND '.join(parts)}" if parts else ""


def _values(rng: random.Random, least: int = 0) -> str:
    return ", ".join(f"{value} AS v{i}" for i, value in enumerate(rng.sample(VALUES, rng.randint(least, 2))))


def _list(rng: random.Random, *keys: str, least: int = 0) -> str:
    return ", ".join(filter(None, [*keys, _values(rng, least)]))


def _flat(rng: random.Random) -> str:
    return f"SELECT {_list(rng, 'r.id')} FROM review r {_where(rng)}"


def _grouped(rng: random.Random) -> str:
    key = rng.choice(["r.product_id", "r.stars", "LLM_FILTER('{text} is good', r.text)"])
    items = ", ".join(f"{item} AS a{i}" for i, item in enumerate(rng.sample(AGGREGATES, 2)))
    having = rng.choice(
        [
            "",
            "HAVING count(*) > 3",
            "HAVING count(*) > 2 AND LLM_FILTER('{1} is lucky', count(*))",
            "HAVING max(r.id) > 30",
        ]
    )
    return f"SELECT {key} AS k, {items} FROM review r {_where(rng, 0)} GROUP BY {key} {having}"


def _joined(rng: random.Random) -> str:
    kind = rng.choice(["JOIN", "JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"])
    on = rng.choice(["", " AND LLM_FILTER('{p.name} fits {r.text}', p.name, r.text)", " AND r.stars > 1"])
    where = _where(rng, 0 if on else 1)
    extra = rng.choice(["", " AND p.kind = 1", " AND p.price > 5"]) if where else rng.choice(["", "WHERE p.kind = 1"])
    items = _list(rng, "p.id AS pid", "r.id AS rid")
    return f"SELECT {items} FROM product p {kind} review r ON r.product_id = p.id{on} {where}{extra}"


def _cte(rng: random.Random) -> str:
    inner = f"SELECT r.id, r.ts, r.text, r.stars, r.product_id, {_values(rng, 1)} FROM review r {_where(rng, 0)}"
    outer = rng.choice(
        [
            "SELECT id, v0 FROM x AS r WHERE r.ts < DATE '2023-01-20'",
            "SELECT count(*), count(v0) FROM x",
            "SELECT id FROM x AS r WHERE r.stars = 2 AND LLM_FILTER('{text} is odd', r.text)",
            "SELECT x.id, p.name FROM x JOIN product p ON x.product_id = p.id WHERE p.kind = 2",
            "SELECT p.id, x.v0 FROM product p LEFT JOIN x ON x.product_id = p.id AND x.stars > 1",
            "SELECT a.id, b.v0 FROM x a JOIN x b ON a.id = b.id WHERE a.stars = 1",
            "SELECT id FROM x",
            "SELECT id, v0 FROM x ORDER BY id LIMIT 4",
            "SELECT * FROM x WHERE stars > 1 ORDER BY ts DESC LIMIT 3 OFFSET 1",
            "SELECT id, v0 FROM x ORDER BY v0 IS NULL, id DESC LIMIT 5",
        ]
    )
    return f"WITH x AS ({inner}) {outer}"


def _derived(rng: random.Random) -> str:
    inner = f"SELECT * FROM review r {_where(rng)}"
    return rng.choice(
        [
            f"SELECT s.id, p.kind FROM ({inner}) s JOIN product p ON p.id = s.product_id WHERE kind = 0 AND s.id > 4",
            f"SELECT product_id, count(*) FROM ({inner}) s WHERE stars > 0 GROUP BY product_id",
            f"SELECT s.id, {VALUES[0].replace('r.', 's.')} FROM ({inner}) AS s WHERE s.ts > DATE '2023-01-10'",
            f"SELECT id FROM product WHERE id IN (SELECT product_id FROM ({inner}))",
        ]
    )


def _limited(rng: random.Random) -> str:
    order = rng.choice(["r.id", "r.ts DESC, r.id", "r.stars NULLS FIRST, r.id DESC"])
    offset = rng.choice(["", "", f" OFFSET {rng.randint(1, 4)}"])
    where = rng.choice(["", "WHERE r.stars > 1", _where(rng), _where(rng)])
    items = _list(rng, rng.choice(["r.id", "*"]), least=0 if "LLM" in where else 1)
    return f"SELECT {items} FROM review r {where} ORDER BY {order} LIMIT {rng.randint(1, 7)}{offset}"


def _exists(rng: random.Random) -> str:
    test = "LLM_FILTER('{name} fits {text}', p.name, r.text)"
    inner = f"SELECT 1 FROM review r WHERE r.product_id = p.id AND r.stars > 1 AND {test}"
    return f"SELECT p.id FROM product p WHERE p.kind < 2 AND {rng.choice(['', 'NOT '])}EXISTS ({inner})"


def _windowed(rng: random.Random) -> str:
    over = rng.choice(["PARTITION BY r.product_id ORDER BY r.id", f"ORDER BY {VALUES[1]}, r.id"])
    qualify = rng.choice(["", f"QUALIFY row_number() OVER ({over}) <= 2", f"QUALIFY {rng.choice(FILTERS)}"])
    value = rng.choice(["row_number()", f"sum({VALUES[1]})", "lag(r.stars)"])
    return f"SELECT r.id, {value} OVER ({over}) AS w FROM review r {_where(rng, 0)} {qualify}"


def _nested(rng: random.Random) -> str:
    """A subquery with a LIMIT under a join, and a second level of calls."""
    order = rng.choice(["r.id", "r.ts DESC, r.id"])
    inner = f"SELECT r.* FROM review r {_where(rng)} ORDER BY {order} LIMIT {rng.randint(2, 9)}"
    outer = rng.choice(
        [
            f"SELECT r.id, p.name, {rng.choice(VALUES)} AS v FROM ({inner}) r JOIN product p ON p.id = r.product_id",
            f"SELECT p.id, count(r.id) FROM product p LEFT JOIN ({inner}) r ON p.id = r.product_id AND r.stars > 1 "
            "GROUP BY p.id",
            f"SELECT max({VALUES[1]}) AS best FROM ({inner}) r",
            f"SELECT p.id FROM product p WHERE p.id IN (SELECT r.product_id FROM ({inner}) r WHERE r.stars < 4)",
        ]
    )
    return f"WITH unused AS (SELECT {VALUES[0]} AS s FROM review r) {outer}"


def _union(rng: random.Random) -> str:
    union = rng.choice(["UNION", "UNION ALL", "EXCEPT"])
    return f"SELECT r.id FROM review r {_where(rng)} {union} SELECT p.id FROM product p"
