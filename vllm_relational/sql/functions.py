"""The LLM functions of SQL: what each asks of a row, how its answer is enforced, and the type that SQL sees.

Adding a function is adding a row to ``LLM_FUNCTIONS``; the parser, the planner and the messages take it from there.

A question is all of a call that decides its answer beside the row: two calls with equal questions share answers.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_relational.answer_format.check import check_answer_format
from vllm_relational.answer_format.statement import NO, WORDING, YES
from vllm_relational.config.kinds import read_labels
from vllm_relational.records import AnswerFormat, Choice, FreeText, IntegerRange, JsonSchema, RelationalError
from vllm_relational.sql.json_types import shaped, sql_type_of

BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")

# Not an LLM function, but planned as one: it is computed once over its distinct inputs.
RETRIEVE = "RETRIEVE"


@dataclass(frozen=True)
class CallQuestion:
    """What a call asks.

    template: for ``RelationalLLM.run``; braces hold names of ``fields``.
    fields:   the names of the record's fields, one an argument.
    reads:    the fields that the template names, in argument order: the others cannot change an answer.
    """

    function: str
    template: str
    answer_format: AnswerFormat
    fields: tuple[str, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        named = {match[1] for match in BRACES.finditer(self.template) if match[1] is not None}
        return self.fields if "*" in named else tuple(field for field in self.fields if field in named)

    @property
    def aggregates(self) -> bool:
        """Whether it is asked once about all values of a group."""
        return LLM_FUNCTIONS[self.function].aggregates

    @property
    def has_layout(self) -> bool:
        """Whether the row may stand first: values of a group are cut to what the question leaves room for."""
        return not self.aggregates

    def identity(self) -> str:
        """A text that is equal for equal questions."""
        answer_format = [type(self.answer_format).__name__, *_parts(self.answer_format)]
        return json.dumps([self.function, self.template, answer_format, self.reads], sort_keys=True, ensure_ascii=False)

    def options(self) -> dict[str, Any]:
        """The options of ``RelationalLLM.run`` that enforce the answer's form."""
        match self.answer_format:
            case Choice(labels):
                return {"choices": list(labels)}
            case IntegerRange(low, high):
                return {"range": (low, high)}
            case JsonSchema(schema, max_tokens):
                return {"schema": dict(schema), "max_tokens": max_tokens}
            case FreeText(max_tokens):
                return {"max_tokens": max_tokens}

    def sql_type(self) -> str:
        """The DuckDB type of the answer."""
        if isinstance(self.answer_format, JsonSchema):
            return sql_type_of(self.answer_format.schema)
        return LLM_FUNCTIONS[self.function].sql_type

    def value(self, answer: Any) -> Any:
        """An answer of ``RelationalLLM.run`` as a value of ``sql_type``; None stays None."""
        if answer is None:
            return None
        if is_predicate(self.function):
            return answer == YES
        return shaped(answer, self.answer_format.schema) if isinstance(self.answer_format, JsonSchema) else answer


def _parts(answer_format: AnswerFormat) -> list[Any]:
    values = [value for value in vars(answer_format).values() if value is not None]
    return [value if not isinstance(value, Mapping) else dict(value) for value in values]


# -------------------------------------------------------------------------------------------------- answer formats
def answer_format_of(function: str, literals: Sequence[Any], max_tokens: int, max_json_tokens: int) -> AnswerFormat:
    """How the answers of a call are enforced.

    literals:   the values of the arguments that ``LLM_FUNCTIONS`` lists for the function.
    max_tokens, max_json_tokens: the longest answers.
    Raises ``RelationalError`` without a place: the parser adds it.
    """
    answer_format = LLM_FUNCTIONS[function].answer_format(literals, max_tokens, max_json_tokens)
    check_answer_format(answer_format)
    return answer_format


def _labels(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RelationalError("the labels are not a list of texts: write ['positive', 'negative']")
    try:
        return read_labels(value)
    except ValueError as error:
        raise RelationalError(f"the labels are not a list of texts: {error}") from None


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RelationalError(f"the score {value!r} is not a whole number: write LLM_SCORE('prompt', 1, 5, column)")
    return value


def _schema(value: Any) -> dict[str, Any]:
    try:
        schema = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError) as error:
        raise RelationalError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise RelationalError('the JSON schema is not a JSON object in quotes: write \'{"type": "object", ...}\'')
    return schema


# -------------------------------------------------------------------------------------------------- the functions
@dataclass(frozen=True)
class SqlFunction:
    """An LLM function.

    usage:         a call of it, for messages.
    literals:      what stands between the prompt and the columns, in words, one per argument.
    answer_format: the values of these arguments, the longest text and the longest JSON in tokens -> how answers are
                   enforced. Raises ``RelationalError`` for values that there are not.
    sql_type:      the DuckDB type of the answers. A BOOLEAN is a choice of ``YES`` and ``NO``; STRUCT is any type that
                   a JSON schema has (``sql_type_of``).
    wording:       what is sent before the prompt.
    aggregates:    it takes one column, and is asked once about all values of a group.
    """

    usage: str
    literals: tuple[str, ...] = ()
    answer_format: Callable[[Sequence[Any], int, int], AnswerFormat] = lambda _, text, json: FreeText(text)
    sql_type: str = "VARCHAR"
    wording: str = ""
    aggregates: bool = False


LLM_FUNCTIONS: Mapping[str, SqlFunction] = {
    "LLM": SqlFunction("LLM('prompt', column, ...)"),
    "LLM_FILTER": SqlFunction(
        "LLM_FILTER('statement', column, ...)",
        answer_format=lambda *_: Choice((YES, NO)),
        sql_type="BOOLEAN",
        wording=WORDING,
    ),
    "LLM_CLASSIFY": SqlFunction(
        "LLM_CLASSIFY('prompt', ['label', 'label'], column, ...)",
        ("a list of labels",),
        lambda given, *_: Choice(_labels(given[0])),
    ),
    "LLM_SCORE": SqlFunction(
        "LLM_SCORE('prompt', 1, 5, column, ...)",
        ("the lowest score", "the highest score"),
        lambda given, *_: IntegerRange(_whole(given[0]), _whole(given[1])),
        sql_type="BIGINT",
    ),
    "LLM_EXTRACT": SqlFunction(
        """LLM_EXTRACT('prompt', '{"type": "object", "properties": {...}}', column, ...)""",
        ("a JSON schema",),
        lambda given, _, longest: JsonSchema(_schema(given[0]), longest),
        sql_type="STRUCT",
    ),
    "LLM_AGG": SqlFunction("LLM_AGG('prompt', column)", aggregates=True),
}


def asks_groups(function: str) -> bool:
    """Whether a function is asked about groups; False for ``RETRIEVE``."""
    return function in LLM_FUNCTIONS and LLM_FUNCTIONS[function].aggregates


def is_predicate(function: str) -> bool:
    """Whether a function says yes or no; False for ``RETRIEVE``."""
    return function in LLM_FUNCTIONS and LLM_FUNCTIONS[function].sql_type == "BOOLEAN"


# ----------------------------------------------------------------------------------------------- names in the prompt
@dataclass(frozen=True)
class Argument:
    """An argument as the prompt may name it: ``name``, and with its table where it is a column of one."""

    name: str
    table: str = ""

    @property
    def qualified(self) -> str:
        return f"{self.table}.{self.name}" if self.table else self.name


def field_names(arguments: Sequence[Argument]) -> tuple[str, ...]:
    """One name an argument: its own where no other argument has it, else with its table, else numbered."""
    counts: dict[str, int] = {}
    for argument in arguments:
        counts[argument.name.casefold()] = counts.get(argument.name.casefold(), 0) + 1
    names: list[str] = []
    for argument in arguments:
        alone = counts[argument.name.casefold()] == 1
        names.append(_fresh(argument.name if alone else argument.qualified, names))
    return tuple(names)


def _fresh(name: str, taken: Sequence[str]) -> str:
    folded = {other.casefold() for other in taken}
    numbered, number = name, 1
    while numbered.casefold() in folded:
        number += 1
        numbered = f"{name}_{number}"
    return numbered


def canonical_template(function: str, prompt: str, arguments: Sequence[Argument]) -> str:
    """The template for ``RelationalLLM.run``: every name in braces becomes a field's; without names all are sent.

    A name is that of a column, with its table or without, the SQL of an expression, or the number of the argument.
    Raises ``RelationalError`` on a name that no argument has, with close matches.
    """
    fields = field_names(arguments)
    named = False

    def canonical(match: re.Match[str]) -> str:
        nonlocal named
        if match[1] is None:
            return match[0]
        named = True
        return "{" + _resolve(match[1].strip(), arguments, fields) + "}"

    template = BRACES.sub(canonical, prompt)
    template = LLM_FUNCTIONS[function].wording + template
    return template if named else f"{template} Answer from {{*}}."


def _resolve(name: str, arguments: Sequence[Argument], fields: Sequence[str]) -> str:
    if name == "*" or name in fields:
        return name
    if name.isdigit() and 1 <= int(name) <= len(fields):
        return fields[int(name) - 1]
    folded = name.casefold()
    ways: tuple[Callable[[int], str], ...] = (
        lambda i: fields[i],
        lambda i: arguments[i].qualified,
        lambda i: arguments[i].name,
    )
    for way in ways:
        found = [i for i in range(len(fields)) if way(i).casefold() == folded]
        if len(found) == 1:
            return fields[found[0]]
        if found:
            options = " or ".join("{" + fields[i] + "}" for i in found)
            raise RelationalError(f"the prompt names {{{name}}}, which several arguments have: write {options}")
    close = difflib.get_close_matches(folded, {field.casefold(): field for field in fields}, n=1, cutoff=0.5)
    hint = f"did you mean {{{close[0]}}}?" if close else f"arguments: {', '.join(fields) or 'none'}"
    raise RelationalError(f"the prompt names {{{name}}}, which is no argument (for a brace write '{{{{'): {hint}")
