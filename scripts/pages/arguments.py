"""The options as typed dictionaries, which editors and type checkers read: vllm_relational/config/arguments.py."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from vllm_relational.config.option import Options
from vllm_relational.config.query import QueryOptions
from vllm_relational.config.signature import given_type
from vllm_relational.config.sql import SqlOptions

CLASSES = {"QueryArguments": QueryOptions, "SqlArguments": SqlOptions}
HEAD = '''"""Options as keyword arguments, for editors. Made by scripts/make_pages.py: do not edit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from vllm_relational.records import PromptBatch
'''


def arguments_module() -> str:
    """The text of the module."""
    return "\n\n".join([HEAD, *("\n".join(typed_dict(name, kind)) + "\n" for name, kind in CLASSES.items())])


def typed_dict(name: str, kind: type[Options]) -> Iterator[str]:
    """The lines of one class."""
    yield f"class {name}(TypedDict, total=False):"
    yield f'    """{(kind.__doc__ or "").splitlines()[0]}"""'
    yield ""
    for option, field in kind.known().items():
        optional = option == "order"  # of the object that answers, where none is given
        yield f"    {option}: {given_type(field, optional)}"
        yield from _text(f'"""{field.description}"""')


def _text(text: str) -> list[str]:
    return textwrap.wrap(
        text, 120, initial_indent="    ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
