"""The user's template -> an instruction that names fields, and the columns it uses."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_relational.records import AnswerFormat, Choice, FreeText, IntegerRange, JsonSchema, RelationalError

ALL_COLUMNS = "*"
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Question:
    """A parsed template.

    template:    as the user wrote it.
    instruction: the template with every ``{column}`` replaced by the field's name in double quotes.
    columns:     the columns used, in original order: as first named; ``{*}`` adds the others in table order.
    """

    template: str
    instruction: str
    columns: tuple[str, ...]


def parse_template(template: str, table_columns: Sequence[str]) -> Question:
    """Parse ``{column}``, ``{*}``, ``{{`` and ``}}``.

    Raises ``RelationalError`` on an unknown column (with close matches), a lone brace, or a template without columns.
    """
    if not template.strip():
        raise RelationalError("the prompt is empty: ask a question that names columns, e.g. 'Is {comments} positive?'")
    if template.encode("utf-8", "ignore").decode() != template:
        raise RelationalError(f"the prompt holds half a character (a lone surrogate): mend {template!r}")
    used: dict[str, None] = {}
    instruction = "".join(_render(piece, used, table_columns) for piece in _pieces(template))
    if not used:
        raise RelationalError(f"the prompt names no column: write {{column}} or {{*}}. {_columns_hint(table_columns)}")
    return Question(template, instruction.strip(), tuple(used))


def answer_rule(answer_format: AnswerFormat) -> str:
    """The sentence that tells the model which answers there are; '' for free text."""
    match answer_format:
        case Choice((first, second)):
            # Not "with one of: yes, no": after that a 0.5B model answered no to 240 of 240 reviews, half of them good.
            return f"Answer {first} or {second}."
        case Choice(labels):
            return f"Answer with one of: {', '.join(labels)}."
        case IntegerRange(low, high):
            return f"Answer with a whole number from {low} to {high}."
        case JsonSchema(schema):
            return f"Answer with JSON that follows this schema: {json.dumps(schema, ensure_ascii=False)}"
        case FreeText():
            return ""


@dataclass(frozen=True)
class _Piece:
    text: str
    column: bool


def _pieces(template: str) -> Iterator[_Piece]:
    end = 0
    for match in _TOKEN.finditer(template):
        yield _Piece(template[end : match.start()], column=False)
        end = match.end()
        if match[0] in ("{{", "}}"):
            yield _Piece(match[0][0], column=False)
        elif match[1] is not None:
            yield _Piece(match[1], column=True)
        else:
            raise RelationalError(
                f"lone {match[0]!r} at character {match.start() + 1} of the prompt: write {match[0] * 2!r} for a brace"
            )
    yield _Piece(template[end:], column=False)


def _render(piece: _Piece, used: dict[str, None], table_columns: Sequence[str]) -> str:
    if not piece.column:
        return piece.text
    name = _resolve(piece.text, table_columns)
    if name == ALL_COLUMNS:
        used.update(dict.fromkeys(table_columns))
        return "the record"
    used[name] = None
    return json.dumps(name, ensure_ascii=False)


def _resolve(name: str, table_columns: Sequence[str]) -> str:
    for candidate in (name, name.strip()):
        if candidate in table_columns:
            return candidate
    if name.strip() == ALL_COLUMNS:
        return ALL_COLUMNS
    raise unknown_column(name, table_columns, "the prompt")


def unknown_column(name: str, table_columns: Sequence[str], where: str) -> RelationalError:
    """The error for a column that the table does not have; ``where`` says who named it."""
    folded = {column.casefold(): column for column in table_columns}
    close = [folded[match] for match in difflib.get_close_matches(name.strip().casefold(), folded, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else _columns_hint(table_columns)
    brace = " (for a literal brace write '{{')" if where == "the prompt" else ""
    return RelationalError(f"{where} names the column {name!r}, which the table does not have{brace}: {hint}")


def _columns_hint(table_columns: Sequence[str]) -> str:
    if not table_columns:
        return "The table has no columns"
    shown = ", ".join(table_columns[:20])
    more = f", and {len(table_columns) - 20} more" if len(table_columns) > 20 else ""
    return f"Columns: {shown}{more}"


def answer_room(answer_format: AnswerFormat) -> int:
    """Tokens to keep free for the answer; constrained answers are short, and vLLM clips their bound itself."""
    if isinstance(answer_format, Choice | IntegerRange):
        return answer_format.max_tokens or _longest_label(answer_format)
    return answer_format.max_tokens


def _longest_label(answer_format: Choice | IntegerRange) -> int:
    if isinstance(answer_format, Choice):
        return max(len(label.encode()) for label in answer_format.labels)
    return max(len(str(answer_format.low)), len(str(answer_format.high)))
