"""A user's JSON schema as data: what it may hold and refer to, and a check of answers that always ends.

Nothing is fetched: a ``$ref`` points into the schema itself or is refused. Patterns are matched by RE2, in time linear
in the text; what RE2 cannot match so (look-around, back-references) is refused. All of it before anything is asked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from vllm_relational.records import RelationalError

MAX_DEPTH = 100
"""Levels of nesting in a schema or an answer: Python, Arrow and DuckDB all walk so many."""
_MAX_BITS = 1024  # of a whole number in a schema: beyond it no float holds it
_ESCAPE = re.compile(
    r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\.", re.DOTALL
)
_DRAFTS = tuple(f"Draft{number}Validator" for number in ("3", "4", "6", "7", "201909", "202012"))
# Values of every JSON type: a schema that refers to itself without end fails on one of them.
_SAMPLES: tuple[Any, ...] = (None, True, 1, "text", [], {})


# --------------------------------------------------------------------------------------------------------- the schema
def plain_schema(schema: Any) -> dict[str, Any]:
    """The schema in JSON's own types; raises ``RelationalError`` naming the place of what JSON does not have."""
    if isinstance(schema, type) and callable(getattr(schema, "model_json_schema", None)):
        raise RelationalError(
            f"the JSON schema is the class {schema.__name__}: give {schema.__name__}.model_json_schema()"
        )
    if not isinstance(schema, Mapping):
        raise RelationalError(f"the JSON schema is of the type {type(schema).__name__}: give a dict")
    plain: dict[str, Any] = _plain(schema, "$", 0)
    return plain


def _plain(value: Any, path: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise RelationalError(f"the JSON schema is nested more than {MAX_DEPTH} deep, or holds itself: flatten it")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _plain_text(value, path)
    if isinstance(value, int | float):
        return _plain_number(value, path)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{place}]", depth + 1) for place, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(name, path): _plain(item, f"{path}.{name}", depth + 1) for name, item in value.items()}
    raise _not_json(path, value)


def _plain_text(value: str, path: str) -> str:
    text = str.__str__(value)  # of an enum that is a text, its value
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _not_json(path, value) from None
    return text


def _plain_number(value: float, path: str) -> float:
    number = float(value) if isinstance(value, float) else int(value)
    if math.isfinite(number) if isinstance(number, float) else number.bit_length() <= _MAX_BITS:
        return number
    raise _not_json(path, value)


def _key(name: Any, path: str) -> str:
    if not isinstance(name, str):
        raise RelationalError(f"the JSON schema has a name at {path} that is no text ({type(name).__name__}): quote it")
    return _plain_text(name, path)


def _not_json(path: str, value: Any) -> RelationalError:
    return RelationalError(
        f"the JSON schema holds at {path} what JSON does not have ({type(value).__name__}): give a text, a finite "
        "number, true, false, null, a list or an object"
    )


# ---------------------------------------------------------------------------------------------------------- the check
def schema_check(schema: Any) -> Callable[[Any], str | None]:
    """A function from a document to the reason why the schema forbids it, None where it does not.

    Raises ``RelationalError`` where the schema is not valid, refers to what it does not hold, or has a pattern that
    needs backtracking. The function raises what a document makes ``jsonschema`` raise.
    """
    validator = _validator(plain_schema(schema))

    def check(document: Any) -> str | None:
        problem = next(validator.iter_errors(document), None)
        return None if problem is None else f"{problem.message} (at {problem.json_path})"

    return check


def _validator(schema: dict[str, Any]) -> Any:
    dialect = _dialect(schema)
    _check_valid(dialect, schema)
    root = {name: value for name, value in schema.items() if name != "$schema"}
    try:
        parts = dict(_parts(root, dialect))
    except ValueError as error:  # of urllib, for an address that is none
        raise RelationalError(f"the JSON schema has an $id that cannot be read: {error}") from error
    for path, part in parts.items():
        _check_part(path, part)
    _check_unevaluated(parts)
    from referencing import Registry

    validator = _linear(dialect)(root, registry=Registry())  # one that fetches nothing
    _check_ends(validator)
    return validator


def _dialect(schema: Mapping[str, Any]) -> Any:
    """The class of ``jsonschema`` for the draft that the schema names."""
    from jsonschema import validators

    named = schema.get("$schema")
    if named is None:
        return validators.Draft202012Validator
    known = {kind.ID_OF(kind.META_SCHEMA).rstrip("#"): kind for kind in (getattr(validators, name) for name in _DRAFTS)}
    if not isinstance(named, str) or named.rstrip("#") not in known:
        raise RelationalError(
            f"the JSON schema names the dialect {named!r} at $.$schema, which is not known: leave it out, or write "
            "https://json-schema.org/draft/2020-12/schema"
        )
    return known[named.rstrip("#")]


def _check_valid(dialect: Any, schema: Mapping[str, Any]) -> None:
    from jsonschema import SchemaError

    try:
        dialect.check_schema(schema, format_checker=None)  # Python's own view of a pattern does not count
    except SchemaError as error:
        raise RelationalError(f"the JSON schema is not valid at {error.json_path}: {_short(error.message)}") from error
    except RecursionError:
        raise RelationalError("the JSON schema is nested too deep to be checked: flatten it") from None


def _parts(root: dict[str, Any], dialect: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schema and all schemas in it, those that only a reference reaches too, each once.

    Raises ``RelationalError`` for a reference that leads out of the schema or nowhere.
    """
    from referencing import Registry, jsonschema

    draft = jsonschema.specification_with(dialect.ID_OF(dialect.META_SCHEMA) or "")
    resource = draft.create_resource(root)
    resolver = Registry().resolver_with_root(resource)
    seen: set[int] = set()
    todo = [("$", resource, resolver)]
    while todo:
        path, part, resolver = todo.pop()
        if not isinstance(part.contents, Mapping) or id(part.contents) in seen:
            continue
        seen.add(id(part.contents))
        yield path, part.contents
        for name in ("$ref", "$dynamicRef", "$recursiveRef"):
            if name in part.contents:
                found = _resolved(f"{path}.{name}", part.contents[name], resolver)
                _check_valid(dialect, found.contents)  # it may stand where no keyword looks
                todo.append((f"{path}.{name}", draft.create_resource(found.contents), found.resolver))
        for inner in part.subresources():
            todo.append((path + _place(part.contents, inner.contents), inner, resolver.in_subresource(inner)))


def _place(part: Mapping[str, Any], inner: Any) -> str:
    """Where an inner schema stands, as a path from the schema around it."""
    for name, value in part.items():
        if value is inner:
            return f".{name}"
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        for place, item in items:
            if item is inner:
                return f".{name}.{place}" if isinstance(place, str) else f".{name}[{place}]"
    return ""


def _resolved(path: str, reference: Any, resolver: Any) -> Any:
    try:
        return resolver.lookup(reference)
    except Exception as error:  # Unresolvable, and what urllib raises for what is no address
        raise RelationalError(
            f"the JSON schema refers at {path} to {_short(repr(reference))}, which it does not hold: nothing is "
            "fetched, copy it under $defs and write #/$defs/NAME"
        ) from error


def _check_part(path: str, part: Mapping[str, Any]) -> None:
    if "$schema" in part:
        raise RelationalError(f"the JSON schema names a dialect of a part at {path}.$schema: name one, at the top")
    if isinstance(part.get("pattern"), str):
        linear_pattern(part["pattern"], f"{path}.pattern")
    patterns = part.get("patternProperties")
    if not isinstance(patterns, Mapping):
        return
    for pattern in patterns:
        linear_pattern(pattern, f"{path}.patternProperties")


def _check_unevaluated(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """What unevaluatedProperties leaves over is found by ``jsonschema`` itself, which matches by backtracking."""
    patterns = [path for path, part in parts.items() if part.get("patternProperties")]
    rest = [path for path, part in parts.items() if "unevaluatedProperties" in part]
    if patterns and rest:
        raise RelationalError(
            f"the JSON schema has unevaluatedProperties at {rest[0]} and patternProperties at {patterns[0]}, which are "
            "not matched together without backtracking: write additionalProperties"
        )


def _check_ends(validator: Any) -> None:
    """Refuse a schema that refers to itself on and on, before every answer fails on it."""
    for sample in _SAMPLES:
        try:
            next(validator.iter_errors(sample), None)
        except RecursionError:
            raise RelationalError(
                "the JSON schema refers to itself without going down into the document: no answer can be checked"
            ) from None
        except Exception as error:  # jsonschema raises what a keyword of a wrong type raises in Python
            raise RelationalError(f"the JSON schema cannot check an answer: {_short(repr(error))}") from error


# ---------------------------------------------------------------------------------------------- without backtracking
def linear_pattern(pattern: str, path: str) -> Any:
    """The pattern compiled by RE2; raises ``RelationalError`` naming the place of one that RE2 does not know."""
    try:
        return _compiled(pattern)
    except ValueError as error:
        raise RelationalError(
            f"the JSON schema has at {path} the pattern {_short(pattern)!r}, which RE2 cannot match ({error}): write "
            "it without look-around, back-references and counts over 1000 (maxLength may take their place)"
        ) from None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(_ESCAPE.sub(_re2_escape, pattern), options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        raise ValueError(reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)) from None


def _re2_escape(match: re.Match[str]) -> str:
    r"""``\u00e9`` as RE2 writes it; other escapes are the same in both."""
    high, low, plain = match.groups()
    if high is not None:
        return f"\\x{{{0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00:x}}}"
    return f"\\x{{{plain}}}" if plain is not None else match[0]


@lru_cache(maxsize=16)
def _linear(dialect: Any) -> Any:
    """The draft's class with every keyword that matches patterns replaced by one that does so by RE2."""
    from jsonschema import validators

    known = dialect.VALIDATORS
    ours = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    return validators.extend(dialect, {name: keyword for name, keyword in ours.items() if name in known})


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if validator.is_type(instance, "string") and not _compiled(pattern).search(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, inner in patterns.items():
        for name, value in instance.items():
            if _compiled(pattern).search(name):
                yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _additional_properties(validator: Any, inner: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    from jsonschema import ValidationError

    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), [_compiled(each) for each in schema.get("patternProperties", {})]
    extra = [name for name in instance if name not in named and not any(each.search(name) for each in patterns)]
    if validator.is_type(inner, "object"):
        for name in extra:
            yield from validator.descend(instance[name], inner, path=name)
    elif not inner and extra:
        yield ValidationError(f"additional properties are not allowed: {', '.join(map(repr, extra))}")


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."
