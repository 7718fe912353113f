"""SQL text -> statements and syntax trees; errors that point at the place in the text."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import duckdb
import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError, TokenError
from sqlglot.tokenizer_core import Token, TokenType

from vllm_relational.config.kinds import half_character
from vllm_relational.records import RelationalError
from vllm_relational.sql.functions import LLM_FUNCTIONS, RETRIEVE, asks_groups
from vllm_relational.sql.markers import set_apart
from vllm_relational.sql.source_text import UnfaithfulError, read, written

DIALECT = "duckdb"
_NAMES_IN_MESSAGE = re.compile(r"""["']([^"']+)["']|with name (\w+)|Function (\w+)""")
_LOOKUP = re.compile(r'"__llm_op_\d+_\d+"|__llm_op_\d+_\d+')
_CALL = re.compile(rf"\b(?:{'|'.join(LLM_FUNCTIONS)})\s*\(", re.IGNORECASE)
# By statement, what to write in its place.
_FIRST = "CREATE TEMP TABLE answers AS SELECT ... first, then go by that table"
_INSTEAD: tuple[tuple[Any, str], ...] = (
    (exp.Update | exp.Delete | exp.Merge | exp.Summarize | exp.Describe, _FIRST),
    (exp.Insert, "write INSERT INTO ... SELECT in place of VALUES"),
    (exp.Values, "write SELECT in place of VALUES"),
)
_BY_KIND = {
    "VIEW": "CREATE TABLE ... AS SELECT keeps the answers",
    "FUNCTION": "write the call where the macro is used",
    "MACRO": "write the call where the macro is used",
}
_OVER_COLUMNS = "SELECT, CREATE TABLE AS, INSERT ... SELECT and COPY (SELECT ...) TO"


CHANGED = (
    "a plan would have to write this anew and lose its meaning: CREATE TEMP TABLE rows AS SELECT ... without the LLM "
    "function first, then ask about those rows"
)
UNREAD = (
    "DuckDB reads this, and the planner of LLM calls does not: CREATE TEMP TABLE rows AS SELECT ... without the LLM "
    "function first, then ask about those rows"
)


class SQLError(RelationalError):
    """The SQL is wrong: the first line says where, what and how to mend it; then the line of SQL and a caret."""


def tokens_of(sql: str) -> list[Token]:
    """sqlglot's words of a text. Before an empty text at its end ``$1`` would begin an endless quote."""
    return sqlglot.tokenize(f"{sql} " if sql.endswith("''") else sql, read=DIALECT)


@dataclass(frozen=True)
class Statement:
    """One statement of a text, exactly as written. ``asks``: it calls an LLM function or ``retrieve``."""

    text: str
    asks: bool


def check_text(sql: str) -> None:
    """Raise ``SQLError`` for a text that is none: DuckDB takes UTF-8."""
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        shown = f"{sql[error.start]!a} is half of a character: {half_character(sql)}"
        raise _error_from(sql.encode("utf-8", "replace").decode(), error.start, shown) from None


def statements(sql: str) -> list[Statement]:
    """The statements of a text. Text that cannot be split into words is one statement, for DuckDB to judge.

    Raises ``SQLError`` for a text that is none.
    """
    check_text(sql)
    spaced, places = set_apart(sql)
    try:
        tokens = tokens_of(spaced)
    except TokenError:
        return [Statement(sql, asks=False)]
    found, start, words = [], 0, []
    for token in [*tokens, None]:
        if token is not None and token.token_type != TokenType.SEMICOLON:
            words.append(token)
            continue
        if words:
            end = len(sql) if token is None else token.start - bisect_left(places, token.start)
            found.append(Statement(sql[start:end], _asks(_behind_command(words))))
        start, words = (token.end + 1 - bisect_left(places, token.end) if token is not None else 0), []
    return found


def _behind_command(tokens: list[Token]) -> list[Token]:
    """The words of a command such as EXPLAIN: sqlglot takes all that stands behind its name as one text."""
    if len(tokens) != 2 or tokens[0].token_type != TokenType.COMMAND:
        return tokens
    try:
        return tokens_of(tokens[1].text)
    except TokenError:
        return tokens


def _asks(tokens: Sequence[Token]) -> bool:
    return any(_is_function(name, after) for name, after in pairwise(tokens))


def _is_function(name: Token, after: Token) -> bool:
    """Whether two words begin a call of an LLM function or ``retrieve``."""
    known = _is_known(name.text) and name.token_type != TokenType.STRING
    return known and after.token_type == TokenType.L_PAREN


def names_in(sql: str) -> set[str]:
    """The words of a text that may name a table, keywords among them: all but texts and numbers."""
    try:
        tokens = tokens_of(set_apart(sql)[0])
    except TokenError:
        return set()
    if tokens and tokens[0].token_type == TokenType.COMMAND:
        tokens = _behind_command(tokens[:2])
    return {token.text for token in tokens if token.token_type not in (TokenType.STRING, TokenType.NUMBER)}


def parse(sql: str) -> exp.Expr:
    """The syntax tree of one statement; raises ``SQLError`` at the place that cannot be read."""
    try:
        tree = read(sql, tokens_of(sql))[0]
    except ParseError as error:
        first = error.errors[0]
        column = (first.get("col") or 1) - len(first.get("highlight") or "")
        place = (first.get("line") or 1, max(column, 0) + 1)
        raise syntax_error(sql) or error_at(sql, *place, UNREAD) from None
    except TokenError:
        raise syntax_error(sql) or error_at(sql, 1, 1, UNREAD) from None
    if tree is None or isinstance(tree, exp.Command):
        raise misplaced(sql, tree)
    return tree


def syntax_error(sql: str) -> SQLError | None:
    """What DuckDB's parser says of a text that it cannot read; None for one that it can."""
    with duckdb.connect() as apart:
        found = json.loads(apart.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()[0][0])
    if found.get("error_type") != "parser":
        return None
    before = sql.encode()[: int(found.get("position") or 0)]  # it counts bytes
    return _error_from(sql, len(before.decode(errors="ignore")), found["error_message"])


def misplaced(sql: str, tree: exp.Expr | None) -> SQLError:
    """The error for a statement in which LLM functions cannot stand: at the first one, with what to write instead."""
    if tree is None or isinstance(tree, exp.Command):
        words = sql.upper().split()
        name = " ".join(words[: 2 if words[:1] == ["EXPLAIN"] else 1])
        message = (
            f"{name} cannot ask: LLM functions stand in {_OVER_COLUMNS}, and over literals in statements as UPDATE"
        )
        return _error_from(sql, _first_call(sql), message)
    fix = next((text for kinds, text in _INSTEAD if isinstance(tree, kinds)), "")
    fix = _BY_KIND.get(str(tree.kind).upper(), "") if isinstance(tree, exp.Create) else fix
    message = f"here an LLM function takes literals only, and columns in {_OVER_COLUMNS}" + (fix and f": {fix}")
    return _error_from(sql, _first_call(sql), message)


def sql_of(tree: exp.Expr) -> str:
    """The SQL of a tree for DuckDB: the user's own text where it has not been changed, see ``source``."""
    try:
        return written(tree)
    except UnfaithfulError as lost:
        raise _error_from(lost.statement, lost.start, CHANGED) from None


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def is_call(node: Any) -> bool:
    """Whether a node of the tree calls an LLM function or ``retrieve``."""
    return isinstance(node, exp.Anonymous) and _is_known(node.name)


def _is_known(name: str) -> bool:
    return name.upper() in LLM_FUNCTIONS or name.upper() == RETRIEVE


def is_retrieval(node: Any) -> bool:
    """Whether a node of the tree calls ``retrieve``."""
    return isinstance(node, exp.Anonymous) and node.name.upper() == RETRIEVE


def calls(tree: exp.Expr) -> Iterator[exp.Anonymous]:
    """Every call of an LLM function or ``retrieve`` in the tree."""
    return (node for node in tree.find_all(exp.Anonymous) if is_call(node))


def holds_call(tree: exp.Expr | None) -> bool:
    """Whether there is a call anywhere below ``tree``."""
    return tree is not None and any(True for _ in calls(tree))


@dataclass(frozen=True)
class CallParts:
    """A call, taken apart: the prompt's text, the values of its literal arguments, and its columns."""

    function: str
    prompt: str
    literals: tuple[Any, ...]
    columns: tuple[exp.Expr, ...]


def parts_of(call: exp.Anonymous, sql: str) -> CallParts:
    """Take a call apart; raises ``SQLError`` when its arguments are not those of the function."""
    function = call.name.upper()
    wanted, usage = LLM_FUNCTIONS[function].literals, LLM_FUNCTIONS[function].usage
    arguments = call.expressions
    if len(arguments) < len(wanted) + 2:
        raise error_here(sql, call, f"{function} has {len(arguments)} arguments: write {usage}")
    prompt = literal(arguments[0])
    if not isinstance(prompt, str):
        raise error_here(sql, call, f"the prompt of {function} is not a text in quotes: write {usage}")
    literals = tuple(literal(argument) for argument in arguments[1 : len(wanted) + 1])
    for name, value in zip(wanted, literals, strict=True):
        if value is None:
            raise error_here(sql, call, f"{function} needs {name} after the prompt: write {usage}")
    columns = tuple(arguments[len(wanted) + 1 :])
    if asks_groups(function) and len(columns) != 1:
        raise error_here(sql, call, f"{function} takes one column: write {usage}")
    return CallParts(function, prompt, literals, columns)


def literal(node: exp.Expr) -> Any:
    """The value of a literal text, whole number or list of texts; None for anything else."""
    if isinstance(node, exp.Literal):
        return node.this if node.is_string else _number(node.this)
    if isinstance(node, exp.Boolean):
        return bool(node.this)
    if isinstance(node, exp.RawString):  # $$...$$
        return str(node.this)
    if isinstance(node, exp.Neg) and isinstance(node.this, exp.Literal) and not node.this.is_string:
        number = _number(node.this.this)
        return -number if isinstance(number, int) else None
    if isinstance(node, exp.Array):
        return [literal(item) for item in node.expressions]
    return None


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


# ---------------------------------------------------------------------------------------------------------- errors
def error_here(sql: str, node: exp.Expr, message: str) -> SQLError:
    """The error, pointing at the function's name where the parser noted it."""
    start = node.meta.get("start")
    if start is None:
        start = next((inner.meta["start"] for inner in node.walk() if "start" in inner.meta), 0)
    return _error_from(sql, start, message)


def _error_from(sql: str, start: int, message: str) -> SQLError:
    line = sql.count("\n", 0, start) + 1
    return error_at(sql, line, start - (sql.rfind("\n", 0, start) + 1) + 1, message)


def error_at(sql: str, line: int, column: int, message: str) -> SQLError:
    """``line`` and ``column`` count from 1."""
    lines = sql.splitlines() or [""]
    shown = lines[min(line, len(lines)) - 1].replace("\t", " ")
    start = max(column - 1 - 80, 0)
    caret = " " * (column - 1 - start) + "^"
    return SQLError(f"line {line}, column {column}: {message}\n  {shown[start : start + 110]}\n  {caret}")


def engine_error(sql: str, error: Exception) -> SQLError:
    """What DuckDB says of a rewritten statement, pointing at the first word of ``sql`` that the message names.

    Names that this package gave are not the user's: the message speaks of the LLM function in their place. Of functions
    that DuckDB proposes instead there may be fifty: they are left out.
    """
    message = str(error).partition("\n\nLINE ")[0].partition("Candidate functions:")[0]
    text = _LOOKUP.sub("the LLM function", " ".join(message.split()))
    for match in _NAMES_IN_MESSAGE.finditer(message):
        name = next(group for group in match.groups() if group)
        token = _first_token(sql, name.partition("(")[0].rpartition(".")[2])
        if token is not None:
            return _error_from(sql, token.start, text)
    return _error_from(sql, _first_call(sql), text) if _LOOKUP.search(message) else SQLError(text)


def _first_call(sql: str) -> int:
    """Where the first LLM function stands; sqlglot does not split commands into words: there what looks like one."""
    try:
        tokens = tokens_of(sql)
    except TokenError:
        tokens = []
    places = (token.start for token, after in pairwise(tokens) if _is_function(token, after))
    found = _CALL.search(sql)
    return next(places, found.start() if found else 0)


def _first_token(sql: str, name: str) -> Token | None:
    try:
        tokens = tokens_of(sql)
    except TokenError:
        return None
    folded = name.casefold()
    return next((token for token in tokens if token.text.casefold() == folded), None)
