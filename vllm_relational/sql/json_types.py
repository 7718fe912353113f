"""The DuckDB types of JSON answers, and JSON values as these types hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# A schema whose parts name each other may be longer written out than any type can be: what comes after is JSON text.
MAX_PARTS, MAX_DEPTH = 1000, 32
_SIMPLE = {"string": "VARCHAR", "integer": "BIGINT", "number": "DOUBLE", "boolean": "BOOLEAN"}


def sql_type_of(schema: Any) -> str:
    """A DuckDB type that holds every document of the schema; VARCHAR, as JSON text, where there is no closer one.

    References into the schema are followed; a part that holds itself is JSON text.
    """
    return _type_of(written_out(schema))


def shaped(value: Any, schema: Any) -> Any:
    """A JSON value as ``sql_type_of(schema)`` holds it: absent properties null, what has no type as JSON text."""
    return _shaped(value, written_out(schema))


def written_out(schema: Any) -> Any:
    """The parts of a schema that decide its type, with what ``$ref`` names in its place."""
    return _Parts(schema).within(schema, ()) if '"$ref"' in json.dumps(schema) else schema


class _Parts:
    """Follows references into ``root``, to ``MAX_PARTS`` parts at most, and ``MAX_DEPTH`` one after the other."""

    def __init__(self, root: Any) -> None:
        self._root, self._left = root, MAX_PARTS

    def within(self, part: Any, around: tuple[str, ...]) -> Any:
        """A part with its references followed. around: those that it was reached by, which it cannot go through."""
        self._left -= 1
        reference = part.get("$ref") if isinstance(part, Mapping) else None
        if self._left < 0 or len(around) > MAX_DEPTH or reference in around or not isinstance(part, Mapping):
            return {}
        if reference is not None:
            own = {name: value for name, value in part.items() if name != "$ref"}
            named = self._named(reference)
            return self.within({**named, **own}, (*around, reference)) if isinstance(named, Mapping) else {}
        found = dict(part)
        if isinstance(part.get("properties"), Mapping):
            found["properties"] = {name: self.within(held, around) for name, held in part["properties"].items()}
        if "items" in part:
            found["items"] = self.within(part["items"], around)
        return found

    def _named(self, reference: Any) -> Any:
        """What a reference means; None for one into nowhere."""
        from referencing import Registry
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012

        try:
            return Registry().resolver_with_root(DRAFT202012.create_resource(self._root)).lookup(reference).contents
        except (Unresolvable, AttributeError, KeyError, TypeError, ValueError):  # checked where the answer's form is
            return None


def _type_of(schema: Any) -> str:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "object" and isinstance(schema.get("properties"), Mapping) and _plain_names(schema["properties"]):
        fields = (f'"{_quoted(name)}" {_type_of(inner)}' for name, inner in schema["properties"].items())
        return f"STRUCT({', '.join(fields)})"
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        return f"{_type_of(schema['items'])}[]"
    return _SIMPLE.get(kind, "VARCHAR") if isinstance(kind, str) else "VARCHAR"


def _shaped(value: Any, schema: Any) -> Any:
    sql_type = _type_of(schema)
    if value is None:
        return None
    if sql_type.startswith("STRUCT") and not sql_type.endswith("[]"):
        return {name: _shaped(value.get(name), inner) for name, inner in schema["properties"].items()}
    if sql_type.endswith("[]"):
        return [_shaped(item, schema["items"]) for item in value]
    if sql_type == "VARCHAR" and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return float(value) if sql_type == "DOUBLE" else int(value) if sql_type == "BIGINT" else value


def _plain_names(properties: Mapping[str, Any]) -> bool:
    """A STRUCT needs fields, and names that differ by more than case."""
    return (
        bool(properties) and len({name.casefold() for name in properties}) == len(properties) and "" not in properties
    )


def _quoted(name: str) -> str:
    return name.replace('"', '""')
