"""SQL with LLM calls against plain DuckDB: the same rows, types and names, and no more inputs asked.

    python scripts/robustness/sql_differential.py 2000            # statements 0 to 1999
    python scripts/robustness/sql_differential.py 100 --start 40 --show
    python scripts/robustness/sql_differential.py 1000 --demands  # statements of which little is needed
    python scripts/robustness/sql_differential.py 2000 --samples 32  # as connect() does: predicates ordered by cost

Without --samples predicates go in DuckDB's own order, and nothing may be asked that it does not evaluate. The order by
cost may ask a little more in a statement, and should ask less in all: the last line has both sums.

In a plain DuckDB the LLM functions are volatile Python functions that give the answers of the model; they write down
what they are called with. Prints how many statements differ, by kind; exits with 1 if any does.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from vllm_relational import RelationalError, RelationalLLM
from vllm_relational.records import AnswerFormat, Choice, Completion, EngineInfo, IntegerRange, Prompt
from vllm_relational.sql import Connection, Settings

sys.path.insert(0, str(Path(__file__).parent))
import numbered_cases
import sql_demands
import sql_statements

_TAG = re.compile(r"Q\d+")
_ROW = re.compile(r"\{\n((?:\"[^\n]*,\n)*)\}")
SHOWN = 12
Input = tuple[str, tuple[str, ...]]


def answer(tag: str, values: Sequence[str], labels: Sequence[str]) -> str:
    """What the model says: one of the labels, by the question's tag and the row's values."""
    return labels[zlib.crc32(json.dumps([tag, sorted(values)]).encode()) % len(labels)]


class TaggedEngine:
    """A model whose answers depend on the tag in the question and the values of the row. ``asked``: those, in order."""

    prompt_form = "messages"

    def __init__(self) -> None:
        self.asked: list[Input] = []

    def start(self) -> EngineInfo:
        return EngineInfo("tagged")

    def ask(self, prompts: Iterable[Prompt], answer_format: AnswerFormat) -> Iterator[Completion]:
        for prompt in prompts:
            tag, values = _question_of(prompt.user)
            self.asked.append((tag, tuple(sorted(values))))
            yield Completion(prompt.key, answer(tag, values, _labels(answer_format)), prompt_tokens=9, output_tokens=1)

    def close(self) -> None:
        """Nothing to close."""


def _question_of(text: str) -> tuple[str, list[str]]:
    row = _ROW.search(text)
    assert row is not None, text
    tag = _TAG.search(text[: row.start()] + text[row.end() :])
    assert tag is not None, text
    values = json.loads("{" + row[1].rstrip(",\n") + "}").values()
    return tag[0], [str(text) for value in values for text in (value if isinstance(value, list) else [value])]


def _labels(answer_format: AnswerFormat) -> Sequence[str]:
    match answer_format:
        case Choice(labels):
            return labels
        case IntegerRange(low, high):
            return [str(number) for number in range(low, high + 1)]
    return ("yes", "no", "maybe")


class Plain:
    """DuckDB with the LLM functions as volatile Python functions of the types that they have with us, as it evaluates a
    comparison with a constant later than a truth value. ``called``: what they were called with."""

    def __init__(self) -> None:
        self.connection = duckdb.connect()
        self.called: list[Input] = []
        self.connection.execute(sql_statements.TABLES)
        create = self.connection.create_function
        create("__llm", self._llm, ["VARCHAR", "VARCHAR[]"], "VARCHAR", side_effects=True)
        create("__holds", self._holds, ["VARCHAR", "VARCHAR[]"], "BOOLEAN", side_effects=True)
        create("__pick", self._pick, ["VARCHAR", "VARCHAR[]", "VARCHAR[]"], "VARCHAR", side_effects=True)
        create("__score", self._score, ["VARCHAR", "BIGINT", "BIGINT", "VARCHAR[]"], "BIGINT", side_effects=True)
        for name, parameters, body in (
            ("LLM", "", "__llm(p, {})"),
            ("LLM_FILTER", "", "__holds(p, {})"),
            ("LLM_CLASSIFY", "o, ", "__pick(p, o, {})"),
            ("LLM_SCORE", "l, h, ", "__score(p, l, h, {})"),
        ):
            whole = ", ".join(
                f"(p, {parameters}{', '.join(names)}) AS {body.format(self._not_null(names))}"
                for names in (["a"], ["a", "b"], ["a", "b", "c"])
            )
            self.connection.execute(f"CREATE MACRO {name}{whole}")
        values = "list(a::VARCHAR ORDER BY a::VARCHAR) FILTER (WHERE a IS NOT NULL)"
        self.connection.execute(f"CREATE MACRO LLM_AGG(p, a) AS __llm(p, {values})")

    @staticmethod
    def _not_null(names: Sequence[str]) -> str:
        nulls = " OR ".join(f"{name} IS NULL" for name in names)
        return f"CASE WHEN {nulls} THEN NULL ELSE [{', '.join(f'{name}::VARCHAR' for name in names)}] END"

    def _llm(self, prompt: str, values: list[str]) -> str:
        return self._pick(prompt, ["yes", "no", "maybe"], values)

    def _holds(self, prompt: str, values: list[str]) -> bool:
        return self._pick(prompt, ["yes", "no"], values) == "yes"

    def _score(self, prompt: str, low: int, high: int, values: list[str]) -> int:
        return int(self._pick(prompt, [str(number) for number in range(low, high + 1)], values))

    def _pick(self, prompt: str, labels: list[str], values: list[str]) -> str:
        found = _TAG.search(prompt)
        assert found is not None, prompt
        self.called.append((found[0], tuple(sorted(values))))
        return answer(found[0], values, labels)


@dataclass
class Outcome:
    """What became of a statement. ``kind``: 'equal', 'wrong rows', 'wrong types', 'wrong names', 'asked more',
    'refused', 'broken' (another error than ``RelationalError``) or 'invalid' (plain DuckDB refuses it)."""

    sql: str
    kind: str
    detail: str = ""
    asked: int = 0
    needed: int = 0


class Comparison:
    """Both sides. options: fields of ``Settings``."""

    def __init__(self, **options: Any) -> None:
        self.plain, self.settings = Plain(), Settings(**options)
        self.database = duckdb.connect()
        self.database.execute(sql_statements.TABLES)

    def run(self, sql: str) -> Outcome:
        """Compare one statement, on a connection of its own: answers of earlier ones would hide what is asked."""
        self.plain.called.clear()
        try:
            relation = self.plain.connection.sql(sql)
            expected = (_types(relation), list(relation.columns), _rows(relation, sql))
        except duckdb.Error as error:
            return Outcome(sql, "invalid", _line(error))
        engine = TaggedEngine()
        with Connection(self.database.cursor(), RelationalLLM(engine=engine), None, self.settings) as connection:
            try:
                result = connection.sql(sql)
                assert result is not None
                got = (_types(result), list(result.columns), _rows(result, sql))
            except RelationalError as error:
                return Outcome(sql, "refused", _line(error))
            except Exception:
                return Outcome(sql, "broken", traceback.format_exc())
        return self._compared(sql, got, expected, engine)

    def _compared(self, sql: str, got: tuple, expected: tuple, engine: TaggedEngine) -> Outcome:
        asked, needed = set(engine.asked), set(self.plain.called)
        outcome = Outcome(sql, "equal", asked=len(asked), needed=len(needed))
        for kind, mine, theirs in zip(("wrong types", "wrong names", "wrong rows"), got, expected, strict=True):
            if mine != theirs:
                outcome.kind, outcome.detail = kind, _difference(mine, theirs)
                return outcome
        if len(asked) > len(needed):
            outcome.kind, outcome.detail = "asked more", f"{len(asked)} asked, {len(needed)} by a volatile function"
        return outcome


def _types(relation: Any) -> list[str]:
    return [str(kind) for kind in relation.types]


def _rows(relation: Any, sql: str) -> list[str]:
    rows = [repr(row) for row in relation.fetchall()]
    return rows if "ORDER BY" in sql.rpartition(")")[2] else sorted(rows)


def _difference(mine: Sequence[str], theirs: Sequence[str]) -> str:
    if len(mine) != len(theirs):
        return f"{len(mine)}, not {len(theirs)}: {list(mine)[:3]}, not {list(theirs)[:3]}"
    pairs = [f"{one}, not {other}" for one, other in zip(mine, theirs, strict=True) if one != other]
    return "; ".join(pairs[:3])


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@dataclass
class Tally:
    """How many statements of each kind, those that are not 'equal', and how many inputs both sides asked in all."""

    counts: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    needed: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.kind] += 1
        self.asked, self.needed = self.asked + outcome.asked, self.needed + outcome.needed
        if outcome.kind != "equal":
            self.outcomes.append(outcome)

    @property
    def failed(self) -> int:
        """Statements with a wrong result, an error that is not one of ours, or too many questions."""
        return sum(self.counts[kind] for kind in self.counts if kind not in ("equal", "refused", "invalid"))


def compare(seeds: Iterable[int], statements: Any = sql_statements, **options: Any) -> Tally:
    """Compare the statements of these numbers. statements: ``sql_statements`` or ``sql_demands``."""
    comparison, tally = Comparison(**options), Tally()
    for seed in seeds:
        tally.add(comparison.run(statements.statement(seed)))
    return tally


def main() -> int:
    parser = numbered_cases.options(__doc__, 2000)
    parser.add_argument("--demands", action="store_true", help="statements of which little is needed")
    samples = "order predicates by cost, with so many inputs each to sample; 0: in DuckDB's own order"
    parser.add_argument("--samples", type=int, default=0, help=samples)
    parser.add_argument("--sql", help="compare this statement instead")
    given = parser.parse_args()
    if given.sql:
        tally = Tally()
        tally.add(Comparison(sample_rows=given.samples, batch_rows=4).run(given.sql))
    else:
        statements = sql_demands if given.demands else sql_statements
        tally = compare(numbered_cases.numbers(given), statements, sample_rows=given.samples, batch_rows=4)
    seen: Counter[str] = Counter()
    for outcome in tally.outcomes:
        seen[outcome.kind] += 1
        if given.show or seen[outcome.kind] <= SHOWN:
            print(f"--- {outcome.kind}\n{outcome.sql}\n    {outcome.detail}")
    print(", ".join(f"{count} {kind}" for kind, count in tally.counts.most_common()))
    print(f"{tally.asked} inputs asked in all, {tally.needed} by a volatile function")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
