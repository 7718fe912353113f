"""Cheap predicates before LLM predicates: a call is asked only for rows where its answer can change the result.

``FALSE AND x`` is FALSE whatever x is, NULL included; the same holds for ``TRUE OR x``, for the branches of CASE that
a condition rules out, for COALESCE after its first value, for a bound of BETWEEN where the other bound decides, for a
value of IN behind one that is equal, and for rows that a FILTER leaves out. So each is a guard: a condition on the same
row outside of which the answer does not matter. Guards never change a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlglot import exp

from vllm_relational.sql.blocks import Aggregates, Site, condition_of, lookups, sql_of
from vllm_relational.sql.parse import DIALECT, calls, holds_call
from vllm_relational.sql.passes.unknown import type_of
from vllm_relational.sql.row_functions import is_window

# How a guard reads to people, where the condition itself says more than they need.
SHOWN_META = "shown"
ROOTS = (exp.Where, exp.Having, exp.Qualify)


def guards_of(call: exp.Expr, aggregates: Aggregates) -> list[exp.Expr]:
    """Conditions, in terms of the rows that the call is computed for, outside of which its answer does not matter.

    In the order of evaluation: a later one may fail, as a cast may, where an earlier one does not hold.
    """
    found: list[exp.Expr] = []
    node = call
    while node.parent is not None and not isinstance(node.parent, exp.Select | exp.Join):
        parent = node.parent
        if isinstance(parent, exp.Filter):
            found = [*_of_filter(node, parent), *found]
        if _changes_rows(parent, aggregates):
            break
        found = [*(guard for guard in _guards(node, parent) if not holds_call(guard)), *found]
        node = parent
    return [guard.copy() for guard in found]


def bounds_of(condition: exp.Expr) -> list[exp.Expr]:
    """What a condition of WHERE that is a BETWEEN says without the bound that asks: other conditions come after it."""
    between = condition.unnest()
    if not isinstance(between, exp.Between) or holds_call(between.this):
        return []
    bounds = [between.args["low"], between.args["high"]]
    asking = [bound for bound in bounds if holds_call(bound)]
    return [guard.copy() for guard in _of_bound(asking[0], between)] if len(asking) == 1 else []


def note_conditions(notes: list[str], site: Site, guards: Sequence[exp.Expr]) -> None:
    """Say which conditions spare questions; answers that they depend on show in the tree of operators."""
    parts = [part for part in condition_of(site.block, "where") if not holds_call(part)]
    cheap = [_text_of(part) for part in (*parts, *guards) if not any(lookups(part))]
    cheap = [text for text in cheap if text and f"({text}) IS TRUE" not in cheap and not text.startswith("__row")]
    plain = dict.fromkeys(text.removesuffix(" IS TRUE") if text.endswith(") IS TRUE") else text for text in cheap)
    if plain and (site.clause == "where" or guards):
        note = f"cheap conditions first: asked only where {' AND '.join(plain)}"
        if note not in notes:
            notes.append(note)


def _text_of(condition: exp.Expr) -> str:
    """How a condition reads in a plan; '' for one that others say, such as those of WHERE together."""
    shown = condition.unnest().meta.get(SHOWN_META)
    told = any(SHOWN_META in node.meta for node in condition.walk())
    return str(shown) if shown is not None else "" if told else sql_of(condition)


def _changes_rows(node: exp.Expr, aggregates: Aggregates) -> bool:
    """Aggregates and windows see many rows: what guards them does not guard those rows."""
    if is_window(node) or isinstance(node, exp.Filter | exp.Query):
        return True
    return aggregates.is_aggregate(node) and not isinstance(node.parent, exp.Filter)


def _guards(node: exp.Expr, parent: exp.Expr) -> Iterator[exp.Expr]:
    match parent:
        case exp.And():
            other = parent.expression if parent.this is node else parent.this
            yield _is_true(other) if _only(parent, exp.true()) else _not(_is(other, exp.false()))
        case exp.Or():
            other = parent.expression if parent.this is node else parent.this
            yield _is(other, exp.false()) if _only(parent, exp.false()) else _not_true(other)
        case exp.If():
            yield from _of_branch(node, parent)
        case exp.Case():
            yield from _of_case(node, parent)
        case exp.Coalesce() if parent.this is not node:
            earlier = parent.expressions[: parent.expressions.index(node)]
            yield from (_is(value, exp.Null()) for value in (parent.this, *earlier))
        case exp.Between() if parent.this is not node:
            yield from _of_bound(node, parent)
        case exp.In() if node.arg_key == "expressions":
            yield from _of_member(node, parent)


def _only(node: exp.Expr, wanted: exp.Expr) -> bool:
    """Whether nothing but ``node IS wanted`` decides: the other truth value and NULL have the same effect there.

    A condition of a clause, of CASE or of a join only ever asks what is TRUE; NOT asks it for what is FALSE. Whether
    an AND or OR is TRUE follows from which of its parts are TRUE, and so for FALSE.
    """
    parent = node.parent
    match parent:
        case exp.And() | exp.Or() | exp.Paren():
            return _only(parent, wanted)
        case exp.Not():
            return _only(parent, exp.false() if wanted.this else exp.true())
        case exp.Is():
            return parent.this is node and parent.expression == wanted
        case exp.If() if node.arg_key == "this":
            case = parent.parent
            return bool(wanted.this) and not (isinstance(case, exp.Case) and case.this is not None)
        case exp.Join() if node.arg_key == "on":
            return bool(wanted.this)
    return isinstance(parent, ROOTS) and bool(wanted.this)


def _of_branch(node: exp.Expr, branch: exp.If) -> Iterator[exp.Expr]:
    """``IF(c, a, b)``, or one ``WHEN c THEN a`` of a CASE."""
    condition = _condition(branch)
    if branch.args.get("true") is node:
        yield _is_true(condition)
    elif branch.args.get("false") is node:
        yield _not_true(condition)


def _of_case(node: exp.Expr, case: exp.Case) -> Iterator[exp.Expr]:
    if node is case.this:
        return
    branches = case.args["ifs"]
    here = next((number for number, branch in enumerate(branches) if branch is node), len(branches))
    yield from (_not_true(_condition(branch)) for branch in branches[:here])


def _condition(branch: exp.If) -> exp.Expr:
    """What a branch tests: its condition, or for ``CASE x WHEN v`` the equation x = v."""
    case = branch.parent
    if isinstance(case, exp.Case) and case.this is not None:
        return exp.EQ(this=exp.paren(case.this.copy()), expression=exp.paren(branch.this.copy()))
    condition: exp.Expr = branch.this
    return condition


def _of_bound(bound: exp.Expr, between: exp.Between) -> Iterator[exp.Expr]:
    """``x BETWEEN a AND b`` is ``x >= a AND x <= b``, all in one type: so the guard keeps the form of the whole."""
    value, is_high, blank = between.this, bound.arg_key == "high", _blank(bound)
    other = between.args["low" if is_high else "high"]
    if blank is None:
        return
    if _only(between, exp.true()):
        known = [held for held in (value, other) if not isinstance(held, exp.Literal)]
        yield from (_shown(_not(_is(held, exp.Null())), "") for held in known)
    low, high = (exp.paren(other.copy()), blank) if is_high else (blank, exp.paren(other.copy()))
    guard = _not(_is(exp.Between(this=exp.paren(value.copy()), low=low, high=high), exp.false()))
    yield _shown(guard, f"{sql_of(value)} {'>=' if is_high else '<='} {sql_of(other)}")


def _of_member(member: exp.Expr, within: exp.In) -> Iterator[exp.Expr]:
    """``x IN (a, b)`` is ``x = a OR x = b``, all in one type."""
    others, blank = [exp.paren(each.copy()) for each in within.expressions if each is not member], _blank(member)
    others = [each for each in others if not holds_call(each)]
    if blank is None or not others:
        return
    value = exp.paren(within.this.copy())
    guard = _not_true(exp.In(this=value, expressions=[*others, blank]))
    yield _shown(guard, sql_of(_not_true(exp.In(this=value.copy(), expressions=[each.copy() for each in others]))))


def _blank(value: exp.Expr) -> exp.Expr | None:
    """NULL of the type that a value with calls has; None where it takes their columns to tell."""
    typed = exp.paren(value.copy())
    for call in reversed(list(calls(typed))):  # the inner ones first
        kind = type_of(call)
        if kind is None:
            return None
        call.replace(exp.cast(exp.Null(), kind, dialect=DIALECT))
    return exp.Case(ifs=[exp.If(this=exp.false(), true=typed)])


def _shown(guard: exp.Expr, text: str) -> exp.Expr:
    guard.meta[SHOWN_META] = text
    return guard


def _of_filter(node: exp.Expr, held: exp.Filter) -> Iterator[exp.Expr]:
    condition = held.expression.this
    if held.this is node and not holds_call(condition):
        yield _is_true(condition)


def _is(value: exp.Expr, what: exp.Expr) -> exp.Expr:
    return exp.Is(this=exp.paren(value.copy(), copy=False), expression=what)


def _not(condition: exp.Expr) -> exp.Expr:
    return exp.Not(this=condition)


def _is_true(value: exp.Expr) -> exp.Expr:
    return _is(value, exp.true())


def _not_true(value: exp.Expr) -> exp.Expr:
    return _not(_is(value, exp.true()))
