"""The user's own text of the parts of a statement, which DuckDB gets in place of what sqlglot would write.

sqlglot reads DuckDB's SQL into trees that lose some of it: an argument that it does not know, IGNORE NULLS, a cast. So
each node remembers the text that it was read from, with a hole for every node below that has a text of its own. As long
as a node is as it was read, but for what fills the holes, its text is written; only a node that was changed is written
by sqlglot. Whether that keeps the meaning is checked before (``faithful``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlglot.parser
from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.parser import Parser
from sqlglot.tokenizer_core import Token, TokenType

from vllm_relational.records import RelationalError
from vllm_relational.sql.methods import restore_columns
from vllm_relational.sql.pivots import pivot_parsers
from vllm_relational.sql.quiet import quiet

# Where sqlglot keeps them differs between its versions.
_PARSER: Any = DuckDB.parser_class
_GENERATOR: Any = DuckDB.generator_class
SPAN_META, END_META, SOURCE_META = "span", "end_of_text", "source"
# Marks nodes that sqlglot is to write though their text is known; nodes that are not in the text.
OPENED_META, MADE_META = "opened", "made"
# Nodes that are parentheses themselves, or keep them in their text.
_BRACKETED = (exp.Paren, exp.Tuple, exp.Subquery, exp.Schema)
# Returns of these are not the text that was consumed, or are no nodes.
_NOT_TRACKED = ("_parse_wrapped", "_parse_csv", "_parse_command", "_parse_as_command", "_parse_table_alias")
# What may stand before an operator behind its operand.
_OPERANDS = (TokenType.NUMBER, TokenType.VAR, TokenType.IDENTIFIER, TokenType.R_PAREN, TokenType.R_BRACKET)
# Clauses, and how their texts begin: sqlglot puts the space before them into their own text.
_CLAUSES: dict[type[exp.Expr], str] = {
    **{exp.From: "FROM", exp.Where: "WHERE", exp.Group: "GROUP", exp.Having: "HAVING", exp.Qualify: "QUALIFY"},
    **{exp.Order: "ORDER", exp.Limit: "", exp.Fetch: "", exp.Offset: "OFFSET", exp.Join: "", exp.Lateral: ""},
}
_HOLE = object()


# ----------------------------------------------------------------------------------------------------------- reading
def _tracked(method: Callable[..., Any]) -> Callable[..., Any]:
    """The parser's method, noting on the node that it returns which text it has read."""

    @functools.wraps(method)
    def parse(self: Any, *given: Any, **named: Any) -> Any:
        first, index = self._curr, self._index
        # What was read before, where the method goes on from it: it may be changed into a part of what it returns.
        held = [part for part in (*given, *named.values()) if isinstance(part, exp.Expr)]
        starts = [part.meta[SPAN_META][0] for part in held if SPAN_META in part.meta]
        node = method(self, *given, **named)
        if isinstance(node, exp.Expr) and self._index > index and first is not None:
            if len(starts) == len(held):
                node.meta[SPAN_META] = (min([first.start, *starts]), self._prev.end + 1)
            else:
                node.meta[END_META] = self._prev.end + 1
        return node

    return parse


def _is_compiled() -> bool:
    """Classes of sqlglotc cannot be extended."""
    return not str(sqlglot.parser.__file__).endswith(".py")


def _is_tracked(name: str) -> bool:
    return name.startswith("_parse_") and not name.startswith(_NOT_TRACKED) and callable(getattr(_PARSER, name))


def _untold(parser: Callable[..., Any]) -> Callable[..., Any]:
    """The parser of what stands behind a function's name, which is not all of the function's text."""

    def parse(self: Any) -> Any:
        node = parser(self)
        if isinstance(node, exp.Expr):
            node.meta.pop(SPAN_META, None)
        return node

    return parse


_TrackingParser: type[Parser] = type(
    "_TrackingParser",
    (_PARSER,),
    {name: _tracked(getattr(_PARSER, name)) for name in dir(_PARSER) if _is_tracked(name)}
    | pivot_parsers(_PARSER, SPAN_META, MADE_META)
    | {
        table: {name: _untold(parser) for name, parser in getattr(_PARSER, table).items()}
        for table in ("FUNCTION_PARSERS", "NO_PAREN_FUNCTION_PARSERS")
    },
)


def read(sql: str, tokens: list[Token]) -> list[exp.Expr | None]:
    """The trees of the statements of a text, whose nodes remember their texts; raises sqlglot's ``ParseError``."""
    if _is_compiled():
        raise RelationalError(
            "the compiled form of sqlglot does not say which words it has read, so SQL with LLM functions cannot be "
            "planned: pip uninstall sqlglotc (sqlglot itself stays)"
        )
    with quiet():
        trees = _TrackingParser(dialect=DuckDB()).parse(_readable(tokens), sql)
    for tree in trees:
        if tree is not None:
            restore_columns(tree, sql, SPAN_META)
            _remember(tree, sql)
    return trees


def _readable(tokens: list[Token]) -> list[Token]:
    """With one word for what sqlglot cannot read and the text keeps all the same: ``5!``, ``x'41'``."""
    kept: list[Token] = []
    for token in tokens:
        before = kept[-1] if kept else None
        if before is not None and token.text == "!" and before.token_type in _OPERANDS:
            kept[-1] = _joined(before, before, token)
        elif before is not None and token.token_type == TokenType.STRING and _is_prefix(before, token):
            kept[-1] = _joined(token, before, token)
        else:
            kept.append(token)
    return kept


def _is_prefix(before: Token, token: Token) -> bool:
    return before.text.casefold() == "x" and before.end + 1 == token.start


def _joined(token: Token, first: Token, last: Token) -> Token:
    """The token, over the text from the first to the last."""
    return Token(token.token_type, token.text, token.line, token.col, first.start, last.end, token.comments)


@dataclass(frozen=True)
class SourceText:
    """The text of a node, which begins at ``start`` of a statement.

    pieces: around the holes; shape: the node as it was read; order: of the holes in the text.
    is_faithful: False where sqlglot would write something else than was read, if the node were changed.
    """

    statement: str
    start: int
    pieces: tuple[str, ...]
    shape: Any
    order: tuple[int, ...]
    is_faithful: bool = True

    def __deepcopy__(self, memo: object) -> SourceText:
        return self


def source_of(node: exp.Expr) -> SourceText | None:
    """The text that a node was read from; None for one that was made, or whose text is not known."""
    found = node.meta.get(SOURCE_META) if node._meta else None
    return found if isinstance(found, SourceText) else None


def _remember(tree: exp.Expr, sql: str) -> None:
    """Turn the spans of all nodes into sources."""
    for node in tree.walk():
        _settle_span(node, sql)
    _drop_strangers(tree)
    for node in list(tree.walk()):
        span = node.meta.get(SPAN_META)
        source = _source(node, span, sql) if span is not None else None
        if source is not None:
            node.meta[SOURCE_META] = source
    for node in tree.walk():  # what is copied with every node
        node.meta.pop(SPAN_META, None)
        node.meta.pop(END_META, None)


def _settle_span(node: exp.Expr, sql: str) -> None:
    """Spans of operators within operators, which no method returns; none for a node that fills the one above it."""
    span = None if node.meta.pop(MADE_META, False) else node.meta.get(SPAN_META) or _known_otherwise(node)
    if span is not None and not isinstance(node, _BRACKETED):
        span = _inside_brackets(sql, *span)
    if span is not None and not sql[slice(*span)].upper().startswith(_CLAUSES.get(type(node), "")):
        span = None  # a FILTER without WHERE, or the word is in another node's text
    above = _spanned_above(node)
    if span is not None and above is not None and span == above.meta[SPAN_META]:
        span = None
    if span is None:
        node.meta.pop(SPAN_META, None)
    else:
        node.meta[SPAN_META] = span


def _known_otherwise(node: exp.Expr) -> tuple[int, int] | None:
    """The span of a node that no method has returned."""
    if isinstance(node, exp.Identifier) and "start" in node.meta:
        return node.meta["start"], node.meta["end"] + 1
    if isinstance(node, exp.Query) and isinstance(node.parent, exp.SetOperation) and node.arg_key == "this":
        start, end = node.parent.meta.get(SPAN_META, (None, 0))[0], node.meta.get(END_META)
        right = node.meta.get(SPAN_META) or (node.expression.meta.get(SPAN_META) if _is_set(node) else None)
        end = end or (right[1] if right else None)
        return (start, end) if start is not None and end is not None else None
    return _reach(node) if isinstance(node, exp.Binary) else None


def _is_set(node: exp.Expr) -> bool:
    return isinstance(node, exp.SetOperation) and isinstance(node.expression, exp.Expr)


def _drop_strangers(tree: exp.Expr) -> None:
    """Forget the spans of nodes over text that is not all theirs, such as the name of a subquery, or not all of it."""
    while True:
        wrong = [*_around_others(tree), *_not_around_own(tree)]
        if not wrong:
            return
        for node in wrong:
            node.meta.pop(SPAN_META, None)


def _around_others(tree: exp.Expr) -> Iterator[exp.Expr]:
    spanned = [node for node in tree.walk() if SPAN_META in node.meta]
    spanned.sort(key=lambda node: (node.meta[SPAN_META][0], -node.meta[SPAN_META][1], node.depth))
    around: list[exp.Expr] = []
    for node in spanned:
        while around and around[-1].meta[SPAN_META][1] <= node.meta[SPAN_META][0]:
            around.pop()
        if around and not _is_above(around[-1], node):
            yield around.pop()
        around.append(node)


def _not_around_own(tree: exp.Expr) -> Iterator[exp.Expr]:
    for node in tree.walk():
        if SPAN_META in node.meta:
            above = _spanned_above(node)
            (start, end) = node.meta[SPAN_META]
            if above is not None and not (above.meta[SPAN_META][0] <= start and end <= above.meta[SPAN_META][1]):
                yield above


def _is_above(node: exp.Expr, other: exp.Expr) -> bool:
    above = other.parent
    while above is not None and above is not node:
        above = above.parent
    return above is node


def _spanned_above(node: exp.Expr) -> exp.Expr | None:
    above = node.parent
    while above is not None and SPAN_META not in above.meta:
        above = above.parent
    return above


def _reach(node: exp.Expr) -> tuple[int, int] | None:
    found: tuple[int, int] | None = node.meta.get(SPAN_META)
    if found is None and isinstance(node, exp.Binary):
        left, right = _reach(node.this), _reach(node.expression)
        return (left[0], right[1]) if left and right else None
    return found


def _inside_brackets(sql: str, start: int, end: int) -> tuple[int, int]:
    """Without the parentheses around the whole, which belong to the node above."""
    while sql[start] == "(" and sql[end - 1] == ")" and _closes_last(sql, start, end):
        start, end = start + 1, end - 1
        while sql[start].isspace():
            start += 1
        while sql[end - 1].isspace():
            end -= 1
    return start, end


def _closes_last(sql: str, start: int, end: int) -> bool:
    """Whether the first parenthesis of a text is closed by its last character."""
    depth = 0
    for token in DuckDB().tokenize(sql[start:end]):
        depth += {"(": 1, ")": -1}.get(token.text, 0) if token.end == token.start else 0
        if depth == 0:
            return token.end == end - start - 1
    return False


def _source(node: exp.Expr, span: tuple[int, int], sql: str) -> SourceText | None:
    holes: list[exp.Expr] = []
    shape = _shape(node, holes, whole=True)
    spans = [hole.meta[SPAN_META] for hole in holes]
    order = sorted(range(len(holes)), key=lambda place: spans[place][0])
    pieces, position = [], span[0]
    for place in order:
        start, end = spans[place]
        if start < position or end > span[1]:
            return None
        pieces.append(sql[position:start])
        position = end
    return SourceText(sql, span[0], (*pieces, sql[position : span[1]]), shape, tuple(order))


# ------------------------------------------------------------------------------------------------------------ shapes
def _shape(value: Any, holes: list[exp.Expr], whole: bool = False) -> Any:
    """A value of a tree with ``_HOLE`` in place of nodes that have a span, which are added to ``holes``."""
    if isinstance(value, exp.Expr):
        if SPAN_META in value.meta and not whole:
            holes.append(value)
            return _HOLE
        return type(value), {key: _shape(part, holes) for key, part in _arguments(value)}
    return [_shape(part, holes) for part in value] if isinstance(value, list) else value


def _arguments(node: exp.Expr) -> Iterator[tuple[str, Any]]:
    return (
        (key, value) for key, value in node.args.items() if value is not None and value is not False and value != []
    )


def _is_as_read(node: exp.Expr, shape: Any, holes: list[exp.Expr]) -> bool:
    """Whether a node is as it was read, but for what stands in its holes, which is added to ``holes``."""
    if not isinstance(shape, tuple) or shape[0] is not type(node):
        return False
    found = dict(_arguments(node))
    return found.keys() == shape[1].keys() and all(_fill(found[key], part, holes) for key, part in shape[1].items())


def _fill(value: Any, shape: Any, holes: list[exp.Expr]) -> bool:
    """Whether a value is as it was read, but for what stands in the holes, which is added to ``holes``."""
    if shape is _HOLE:
        holes.append(value)
        return isinstance(value, exp.Expr)
    if isinstance(value, exp.Expr):
        return _is_as_read(value, shape, holes)
    if isinstance(value, list):
        same = isinstance(shape, list) and len(value) == len(shape)
        return same and all(_fill(part, known, holes) for part, known in zip(value, shape, strict=True))
    return bool(value == shape)


# ----------------------------------------------------------------------------------------------------------- writing
class UnfaithfulError(Exception):
    """sqlglot would have to write a node anew and would not keep its meaning. ``statement``, ``start``: its place."""

    def __init__(self, source: SourceText) -> None:
        super().__init__(source.statement, source.start)
        self.statement, self.start = source.statement, source.start


class _SourceGenerator(_GENERATOR):  # type: ignore[misc]
    """Writes nodes as they were read, but for those marked with ``OPENED_META``."""

    def sql(self, expression: Any, key: str | None = None, comment: bool = True) -> str:
        """The text of a node, or of its argument ``key``."""
        node = expression.args.get(key) if key and isinstance(expression, exp.Expr) else expression
        if not isinstance(node, exp.Expr):
            return str(super().sql(node, None, comment))
        if OPENED_META in node.meta:
            return _bracketed(node, super().sql(node, None, comment))
        source = source_of(node)
        text = self._as_read(node, source) if source is not None else None
        if text is not None:
            return f" {text}" if type(node) in _CLAUSES else text
        if source is not None and not source.is_faithful:
            raise UnfaithfulError(source)
        return str(super().sql(node, None, comment))

    def _as_read(self, node: exp.Expr, source: SourceText) -> str | None:
        held: list[exp.Expr] = []
        if not _is_as_read(node, source.shape, held):
            return None
        texts = [self.sql(held[place]).lstrip() for place in source.order]
        return _spliced(source.pieces, texts)


def _spliced(pieces: Sequence[str], texts: Sequence[str]) -> str:
    """The pieces with the texts in their holes; words that would run together are kept apart."""
    whole = pieces[0]
    for part in (part for pair in zip(texts, pieces[1:], strict=True) for part in pair):
        whole += f" {part}" if _is_word(whole[-1:]) and _is_word(part[:1]) else part
    return whole


def _is_word(character: str) -> bool:
    return character.isalnum() or (character != "" and character in "_$")


def _bracketed(node: exp.Expr, text: str) -> str:
    """Brackets show whether DuckDB takes the same words for an operand as sqlglot does."""
    return f"({text})" if isinstance(node.parent, exp.Connector) else text


def written(tree: exp.Expr) -> str:
    """The SQL of a tree for DuckDB; raises ``UnfaithfulError``."""
    with quiet():
        return str(_SourceGenerator(dialect=DuckDB(), comments=False).generate(tree))
