"""Statements with LLM calls over many types, functions and clauses of DuckDB, for ``sql_differential.py``.

Every statement has one right result: where it has a LIMIT, its ORDER BY ends with a key. Every call begins its prompt
with a tag of its own, ``Q7``, by which both sides of the comparison find the question again.
"""

from __future__ import annotations

import random
from pathlib import Path

TABLES = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad');
CREATE TABLE k AS SELECT i AS id, 'product ' || (i % 4) AS name, i % 3 AS kind, (i * 2.5)::DECIMAL(9, 2) AS price,
  DATE '2023-01-01' + (i * 4)::INT AS since FROM range(8) t(i);
CREATE TABLE d AS SELECT i::INTEGER AS id, (i % 6)::INTEGER AS kid,
  CASE WHEN i % 11 = 5 THEN NULL ELSE 'text ' || (i % 13) END AS text,
  ['Anna''s', 'Öl', 'x;y', 'a b', '--no', '{curly}'][1 + i % 6] AS odd,
  (i % 7)::TINYINT AS n, (i * 1000003)::BIGINT AS big, (i::HUGEINT * 10000000000000000000) AS h,
  (i * 1.25)::DECIMAL(9, 2) AS dec, i / 8 AS dbl, DATE '2023-01-01' + i::INT AS day,
  TIMESTAMP '2023-01-01 10:00:00' + to_hours(i * 7) AS ts, make_time((i % 24), (i % 60), 0.5) AS tm,
  ('12:00:00+0' || (i % 5))::TIMETZ AS ttz, to_days(i % 40) + to_minutes(i) AS iv,
  list_transform(range(i % 4), lambda z: (z + i)::INTEGER) AS l, ['a' || i, 'b', NULL][1:1 + i % 3] AS ls,
  {'a': i::INTEGER, 'b': 's' || (i % 5)} AS st, MAP {'k' || (i % 3): i::INTEGER, 'z': 0} AS m,
  CASE WHEN i % 2 = 0 THEN union_value(num := i::INTEGER) ELSE i::INTEGER::UNION(num INTEGER, str VARCHAR) END AS u,
  (['sad', 'ok', 'glad'][1 + i % 3])::mood AS e, (i % 8)::INTEGER::BIT AS bits, ('b' || i)::BLOB AS raw,
  ('00000000-0000-0000-0000-0000000000' || lpad(i::VARCHAR, 2, '0'))::UUID AS uid,
  json_object('a', i, 'b', ['x', 'y' || (i % 3)]) AS js, [i, i + 1, i + 2]::INTEGER[3] AS arr, i % 3 = 0 AS yes,
  CASE WHEN i % 7 = 3 THEN NULL ELSE (i % 5)::INTEGER END AS stars FROM range(30) t(i);
CREATE MACRO twice(x) AS x || x;
CREATE MACRO plus(x, y := 2) AS x + y;
"""


def _lines(name: str) -> list[str]:
    return Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()


# Values of a row of d, each with a type or a syntax of its own, and conditions on it.
VALUES, CONDITIONS = _lines("sql_values.txt"), _lines("sql_conditions.txt")
FILTERS = [
    "LLM_FILTER('Q1 {text} is good', d.text)",
    "LLM_FILTER('Q2 is it long?', d.odd)",
    "NOT LLM_FILTER('Q3 {1} and {2}', d.text, d.odd)",
    "LLM('Q4 mood', d.text) = 'yes'",
    "LLM_SCORE('Q5', 1, 5, d.text) > 2",
    "LLM_CLASSIFY('Q6', ['glad', 'sad', 'cold'], d.text) <> 'sad'",
    "LLM('Q4 mood', d.day::VARCHAR) IN ('yes', 'no')",
    "LLM_FILTER($$Q7 it's so$$, upper(d.odd) || d.id)",
    "LLM_FILTER('Q8', d.odd) IS NOT FALSE",
    "LLM_SCORE('Q5', 1, 5, concat_ws(' ', d.text, d.n)) BETWEEN 2 AND 4",
    "d.id BETWEEN 15 AND 15 + LLM_SCORE('Q9', 1, 9, d.text)",
    "d.stars NOT BETWEEN LLM_SCORE('Q92', 1, 3, d.odd) AND 3",
    "d.n IN (2, LLM_SCORE('Q93', 1, 6, d.text), 5)",
    "typeof(LLM('Q94', d.odd)) = 'VARCHAR'",
]
ANSWERS = [
    "LLM('Q10 sum up {text}', d.text)",
    "LLM_SCORE('Q11', 1, 5, d.text)",
    "CASE WHEN d.n > 2 THEN LLM('Q12', d.text) WHEN d.n < 2 THEN 'bad' END",
    "LLM_FILTER('Q13', d.odd)",
    "coalesce(d.stars, LLM_SCORE('Q14', 0, 4, d.text))",
    "LLM('Q15', LLM('Q16', d.text))",
    "upper(LLM_CLASSIFY('Q17', ['a', 'b'], d.text))",
    "LLM('Q18', d.text) || '-' || d.odd",
    "LLM('Q19', d.day::VARCHAR)::VARCHAR::VARCHAR",
    "[LLM('Q20', d.text), d.odd]",
    "{'answer': LLM_SCORE('Q21', 1, 9, d.odd), 'n': d.n}",
    "LLM_SCORE('Q22', 1, 9, d.text) / 2",
    "LLM_SCORE('Q22', 1, 9, d.text) // 2",
    "(LLM_SCORE('Q23', 1, 9, d.text), 'x')",
    "if(LLM_FILTER('Q24', d.text), d.day, DATE '2000-01-01')",
    "LLM('Q25 the {1}', d.odd) ^@ 'y'",
    "LLM('Q26', d.st.b)[1:2]",
    "d.day + LLM_SCORE('Q27', 1, 3, d.text)::INTEGER",
    "d.l[LLM_SCORE('Q28', 1, 2, d.text)]",
    "list_transform([LLM('Q29', d.odd)], lambda z: z || '!')",
    "d.stars BETWEEN 2 AND LLM_SCORE('Q30', 1, 5, d.text)",
    "typeof(LLM_SCORE('Q31', 1, 5, d.odd))",
    "LLM('Q32', d.odd) || NULL",
]
# Of a row of d, none, one or several.
ROW_MAKERS = [
    "unnest(d.l)",
    "unnest(d.ls) || '!'",
    "generate_subscripts(d.l, 1)",
    "unnest(string_split(d.text, ' '))",
    "unnest(CASE WHEN d.n > 2 THEN [d.odd, d.text] END)",
]
AGGREGATES = [
    "avg(LLM_SCORE('Q40', 1, 5, d.text))",
    "count(*) FILTER (WHERE LLM_FILTER('Q41', d.text))",
    "max(CASE WHEN d.n > 1 THEN LLM('Q42', d.text) END)",
    "LLM_AGG('Q43', d.odd)",
    "sum(LLM_SCORE('Q44', 1, 9, d.text)) FILTER (WHERE d.id % 2 = 0)",
    "sum(LLM_SCORE('Q45', 1, 9, d.text))",
    "list(LLM('Q46', d.text) ORDER BY d.id)",
    "string_agg(LLM('Q47', d.odd), ',' ORDER BY d.id DESC)",
    "arg_max(d.id, (LLM_SCORE('Q48', 1, 9, d.text), d.id))",
    "count(DISTINCT LLM('Q49', d.odd))",
    "bool_and(LLM_FILTER('Q50', d.odd))",
]
PLAIN_AGGREGATES = [
    "sum(d.big)",
    "sum(d.n)",
    "sum(d.dec)",
    "avg(d.dec)",
    "count(*)",
    "min(d.e)",
    "max(d.day)",
    "list(d.n ORDER BY d.id)",
    "string_agg(d.odd, '; ' ORDER BY d.id)",
    "first(d.text ORDER BY d.id)",
    "arg_min(d.text, d.id)",
    "histogram(d.n)",
    "mode(d.id >= 0)",
    "median(d.n)",
    "quantile_cont(d.dbl, [0.25, 0.5])",
    "bit_or(d.n)",
    "count(d.stars) FILTER (d.n > 1)",
    "sum(d.n) FILTER (WHERE d.yes)",
    "approx_count_distinct(d.kid) > 0",
    "percentile_disc(0.5) WITHIN GROUP (ORDER BY d.n)",
    "max(d.id, 2)",
    "any_value(d.kid) IS NULL",
    "product(d.n)",
    "list(DISTINCT d.yes ORDER BY d.yes)",
    "grouping(d.kid)",
]
WINDOWS = [
    "row_number() OVER (ORDER BY d.id)",
    "sum(d.n) OVER (PARTITION BY d.kid ORDER BY d.id ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)",
    "sum(d.n) OVER (ORDER BY d.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 FOLLOWING EXCLUDE CURRENT ROW)",
    "lag(d.stars IGNORE NULLS) OVER (ORDER BY d.id)",
    "lead(d.stars, 2, -1) OVER (ORDER BY d.id)",
    "first_value(d.stars IGNORE NULLS) OVER (PARTITION BY d.kid ORDER BY d.id)",
    "last_value(d.text RESPECT NULLS) OVER (ORDER BY d.id)",
    "nth_value(d.n, 2) OVER (ORDER BY d.id)",
    "rank() OVER (ORDER BY d.n DESC NULLS LAST)",
    "dense_rank() OVER w",
    "count(*) OVER (ORDER BY d.day RANGE BETWEEN INTERVAL 3 DAY PRECEDING AND INTERVAL 1 DAY FOLLOWING)",
    "sum(d.n) OVER (ORDER BY d.id GROUPS BETWEEN 1 PRECEDING AND CURRENT ROW)",
    "ntile(3) OVER (ORDER BY d.id)",
    "count(*) FILTER (WHERE d.yes) OVER (PARTITION BY d.n)",
    "sum(LLM_SCORE('Q60', 1, 9, d.text)) OVER (ORDER BY d.id)",
    "lag(LLM('Q61', d.odd)) OVER (ORDER BY d.id)",
]


def statement(seed: int) -> str:
    """The statement with that number."""
    rng = random.Random(seed)
    return rng.choice(SHAPES)(rng)


# ----------------------------------------------------------------------------------------------------------- parts
def _named(parts: list[str], prefix: str) -> list[str]:
    return [f"{part} AS {prefix}{place}" for place, part in enumerate(parts)]


def _values(rng: random.Random, most: int = 4) -> list[str]:
    return _named(rng.sample(VALUES, rng.randint(1, most)), "x")


def _answers(rng: random.Random, least: int = 0, most: int = 2) -> list[str]:
    return _named(rng.sample(ANSWERS, rng.randint(least, most)), "y")


def _where(rng: random.Random, least: int = 0, most: int = 2) -> str:
    parts = rng.sample(CONDITIONS, rng.randint(0, 2)) + rng.sample(FILTERS, rng.randint(least, most))
    rng.shuffle(parts)
    if len(parts) > 2 and rng.random() < 0.4:
        parts = [f"({parts[0]} OR {parts[1]})", *parts[2:]]
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def _items(rng: random.Random, least: int = 1) -> str:
    items = ["d.id", *_values(rng), *_answers(rng, least)]
    rng.shuffle(items)
    return ", ".join(items)


def _noise(rng: random.Random) -> str:
    return rng.choice([" ", " ", " ", "\n", " /* a 'comment' */ ", " -- to the end; of line\n"])


# ---------------------------------------------------------------------------------------------------------- shapes
def _flat(rng: random.Random) -> str:
    return f"SELECT {_items(rng)}{_noise(rng)}FROM d{_where(rng)}"


def _filtered(rng: random.Random) -> str:
    return f"SELECT {_items(rng, 0)}{_noise(rng)}FROM d{_where(rng, 1)}"


def _from_first(rng: random.Random) -> str:
    return rng.choice(
        [f"FROM d SELECT {_items(rng)}{_where(rng)}", f"FROM d{_where(rng, 1)}", f"FROM d AS d SELECT {_items(rng)}"]
    )


def _stars(rng: random.Random) -> str:
    star = rng.choice(
        [
            "*",
            "d.*",
            "* EXCLUDE (raw, ttz)",
            "* REPLACE (d.n + 1 AS n)",
            "COLUMNS(*)",
            "COLUMNS('^[ab].*')",
            "COLUMNS(lambda c: c LIKE 't%')",
            "* RENAME (big AS large)",
            "COLUMNS(* EXCLUDE (js))",
            "d.* EXCLUDE (d.raw)",
            "min(COLUMNS('[nk].*')) OVER ()",
            "* LIKE 't%'",
        ]
    )
    return f"SELECT {', '.join([star, *_answers(rng, 1)])} FROM d{_where(rng)}"


def _twins(rng: random.Random) -> str:
    return f'SELECT d.n, d.n, d.text AS n, {_answers(rng, 1, 1)[0]}, d.kid AS "Größe", 1 AS "a b" FROM d{_where(rng)}'


def _limited(rng: random.Random) -> str:
    order = rng.choice(["d.id", "d.ts DESC, d.id", "d.stars NULLS FIRST, d.id DESC", "d.n, id"])
    limit = rng.choice(["LIMIT 5", "LIMIT 3 OFFSET 2", "LIMIT 10%", "LIMIT (2 + 2)", "OFFSET 20", "LIMIT 1_0"])
    return f"SELECT {_items(rng)} FROM d{_where(rng)} ORDER BY {order} {limit}"


def _grouped(rng: random.Random) -> str:
    key = rng.choice(["d.kid", "d.stars", "d.e", "d.day - (d.id % 7)", "d.text", "LLM_FILTER('Q70', d.text)", "d.st.b"])
    plain = [item for item in rng.sample(PLAIN_AGGREGATES, rng.randint(1, 3)) if "grouping(" not in item]
    items = _named(plain + rng.sample(AGGREGATES, rng.randint(1, 2)), "a")
    having = rng.choice(["", "", " HAVING count(*) > 3", " HAVING max(d.id) > 20 AND LLM_FILTER('Q71', count(*))"])
    group = rng.choice([f"GROUP BY {key}", "GROUP BY ALL", "GROUP BY 1"])
    return f"SELECT {key} AS g, {', '.join(items)} FROM d{_where(rng, 0, 1)} {group}{having}"


def _hidden_columns(rng: random.Random) -> str:
    """Aliases with names of columns, in HAVING."""
    items = rng.choice(["d.kid, sum(d.n) AS n", "d.kid AS id, count(*) AS n", "d.kid + 1 AS n, count(*) AS kid"])
    key = "d.kid + 1" if "+ 1" in items else rng.choice(["d.kid", "1", "ALL"])
    having = rng.choice(["n > 2", "n > 4 AND LLM_FILTER('Q71', max(d.text))", "n > 12 OR max(n) > 5"])
    return f"SELECT {items}, LLM('Q72', max(d.text)) AS y FROM d{_where(rng, 0, 1)} GROUP BY {key} HAVING {having}"


def _numbered_sets(rng: random.Random) -> str:
    sets = rng.choice(["CUBE (1, 2)", "ROLLUP (1, 2)", "GROUPING SETS ((1, 2), (1), ())", "1, CUBE (2)", "(1, 2)"])
    key = rng.choice(["d.yes", "LLM_FILTER('Q73', d.text)"])
    return f"SELECT d.kid, {key} AS key, count(*) AS c FROM d{_where(rng, 0, 1)} GROUP BY {sets}"


def _unnested(rng: random.Random) -> str:
    rows = " WHERE " + rng.choice(CONDITIONS) if rng.random() < 0.4 else _where(rng)
    return f"SELECT d.id, {rng.choice(ROW_MAKERS)} AS u, {_answers(rng, 1, 2)[0]} FROM d{rows}"


def _grouping_sets(rng: random.Random) -> str:
    sets = rng.choice(
        [
            "GROUPING SETS ((d.kid), (d.yes), ())",
            "ROLLUP (d.kid, d.yes)",
            "CUBE (d.kid, d.yes)",
            "d.yes, ROLLUP (d.kid)",
        ]
    )
    items = _named([rng.choice(PLAIN_AGGREGATES), rng.choice(AGGREGATES)], "a")
    return f"SELECT d.kid, d.yes, grouping(d.kid) AS gr, {', '.join(items)} FROM d{_where(rng, 0, 1)} GROUP BY {sets}"


def _whole(rng: random.Random) -> str:
    plain = [item for item in rng.sample(PLAIN_AGGREGATES, 3) if "grouping(" not in item]
    return f"SELECT {', '.join(_named(plain + rng.sample(AGGREGATES, 2), 'a'))} FROM d{_where(rng, 0, 1)}"


def _windowed(rng: random.Random) -> str:
    items = _named(rng.sample(WINDOWS, 2), "w") + _answers(rng, 0, 1)
    qualify = rng.choice(["", "", " QUALIFY row_number() OVER (PARTITION BY d.kid ORDER BY d.id) <= 2"])
    window = " WINDOW w AS (PARTITION BY d.kid ORDER BY d.n)" if "OVER w" in " ".join(items) else ""
    return f"SELECT d.id, {', '.join(items)} FROM d{_where(rng, 0 if 'LLM' in str(items) else 1)}{window}{qualify}"


def _joined(rng: random.Random) -> str:
    join = rng.choice(
        [
            "JOIN k ON k.id = d.kid",
            "LEFT JOIN k ON k.id = d.kid AND k.kind > 0",
            "RIGHT JOIN k ON k.id = d.kid",
            "FULL OUTER JOIN k ON (k.id = d.kid)",
            "SEMI JOIN k ON k.id = d.kid",
            "ANTI JOIN k ON k.id = d.kid",
            "ASOF JOIN k ON d.day >= k.since",
            "ASOF LEFT JOIN k ON d.kid = k.kind AND d.day >= k.since",
            "POSITIONAL JOIN k",
            "CROSS JOIN k",
            ", k",
            "JOIN (SELECT id AS kid, name, price FROM k) k USING (kid)",
            "NATURAL JOIN (SELECT id AS kid, name FROM k) k",
            "JOIN LATERAL (SELECT d.n + k0.id AS q FROM k k0 WHERE k0.id = d.kid) k ON TRUE",
            "LEFT JOIN (VALUES (1, 'one'), (2, 'two')) k(id, name) ON k.id = d.kid",
            "INNER JOIN k ON k.id = d.kid AND LLM_FILTER('Q80 {1} and {2}', k.name, d.text)",
        ]
    )
    where = _where(rng, 1)
    return f"SELECT {_items(rng, 0)} FROM d {join}{where}"


def _derived(rng: random.Random) -> str:
    inner = f"SELECT d.*, {_answers(rng, 1, 1)[0]} FROM d{_where(rng)}"
    outer = rng.choice(["d.n > 1", "d.y0 IS NOT NULL", "d.st.a < 20 AND d.day < DATE '2023-01-20'"])
    return f"SELECT {_items(rng, 0)}, d.y0 FROM ({inner}) AS d WHERE {outer}".replace("AS y0,", "AS y9,")


def _cte(rng: random.Random) -> str:
    inner = f"SELECT d.*, {rng.choice(ANSWERS)} AS z FROM d{_where(rng, 0, 1)}"
    kind = rng.choice(["", "", "MATERIALIZED ", "NOT MATERIALIZED "])
    outer = rng.choice(
        [
            f"SELECT {_items(rng, 0)}, z FROM x AS d WHERE d.n > 2",
            "SELECT count(*) AS c, count(z) AS cz FROM x",
            f"SELECT {_items(rng, 0)} FROM x AS d JOIN k ON k.id = d.kid WHERE z IS NOT NULL",
            "SELECT a.id, b.z FROM x a JOIN x b ON a.id = b.id WHERE a.n = 1",
            "FROM x SELECT id, z WHERE kid = 2",
        ]
    )
    return f"WITH x AS {kind}({inner}) {outer}"


def _sets(rng: random.Random) -> str:
    kind = rng.choice(["UNION", "UNION ALL", "EXCEPT", "INTERSECT", "UNION ALL BY NAME", "EXCEPT ALL", "UNION BY NAME"])
    value = rng.choice(VALUES)
    one = f"SELECT d.id, {value} AS v FROM d{_where(rng, 1, 1)}"
    return f"{one} {kind} SELECT d.id, {value} AS v FROM d WHERE d.id % 4 = 0"


def _distinct(rng: random.Random) -> str:
    return rng.choice(
        [
            f"SELECT DISTINCT {rng.choice(VALUES)} AS v, {rng.choice(ANSWERS)} AS y FROM d{_where(rng, 0, 1)}",
            f"SELECT DISTINCT ON (d.kid) d.kid, {_items(rng)} FROM d{_where(rng, 0, 1)} ORDER BY d.kid, d.id",
        ]
    )


def _pivoted(rng: random.Random) -> str:
    inner = f"SELECT d.kid, d.n, d.e, ({rng.choice(ANSWERS)})::VARCHAR AS y FROM d{_where(rng, 0, 1)}"
    return rng.choice(
        [
            f"SELECT * FROM (PIVOT ({inner}) ON e IN ('sad', 'ok') USING count(*) GROUP BY kid)",
            f"SELECT * FROM ({inner}) PIVOT (count(y) FOR e IN ('sad', 'glad') GROUP BY kid)",
            f"SELECT * FROM (SELECT kid, n, y FROM ({inner})) UNPIVOT (v FOR c IN (kid))",
            f"SELECT {_items(rng)} FROM (SELECT * FROM d UNPIVOT (v FOR c IN (n, kid) )) AS d0, d WHERE d.id = d0.id",
        ]
    )


def _tables(rng: random.Random) -> str:
    source = rng.choice(
        [
            "(SELECT id, unnest(l) AS one, text, odd, n FROM d) AS d",
            "(SELECT id, text, odd, n FROM d TABLESAMPLE 100%) AS d",
            "(FROM d) AS d",
            "(TABLE d) AS d",
            "d AS d(id)",
            "main.d AS d",
            "memory.main.d d",
            "(d CROSS JOIN (SELECT 1 AS one))",
            "(SELECT * FROM d ORDER BY id LIMIT 9) AS d",
            "(VALUES (1, 'text 1', 'o', 2), (2, 'text 2', 'p', 3)) d(id, text, odd, n)",
            "(SELECT range::INTEGER AS id, 'text ' || range AS text, 'o' AS odd, 1 AS n FROM range(5)) AS d",
        ]
    )
    return f"SELECT d.id, LLM('Q90', d.text) AS y FROM {source} WHERE LLM_FILTER('Q91', d.text)"


SHAPES = [
    *([_flat] * 6),
    *([_filtered] * 6),
    *([_joined] * 4),
    *([_windowed] * 3),
    *([_grouped] * 3),
    *([_limited] * 3),
    *([_cte] * 2),
    *([_derived] * 2),
    _from_first,
    _stars,
    _twins,
    _grouping_sets,
    _hidden_columns,
    _numbered_sets,
    *([_unnested] * 2),
    _whole,
    _sets,
    _distinct,
    _pivoted,
    _tables,
]
