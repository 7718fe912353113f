"""One thing of vLLM that we touch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A class, function or name of vLLM.

    module, name:  where it is defined.
    used_by:       modules of ours, within ``vllm_ext``; those of ``context`` with its name.
    parameters:    of a function; ``x=`` has a default.
    methods:       of a class: name -> parameters without ``self``; what we call, override or replace.
    attributes:    of a class: what we read or set.
    replaces:      those of the methods that we replace on an instance.
    imported_from: the module that we import it from.
    """

    module: str
    name: str
    used_by: tuple[str, ...]
    why: str
    parameters: str | None
    methods: Mapping[str, str]
    attributes: tuple[str, ...]
    replaces: tuple[str, ...]
    imported_from: str

    @property
    def path(self) -> str:
        """As in an import."""
        return f"{self.module}.{self.name}"


def target(
    module: str,
    name: str,
    used_by: str,
    why: str,
    *,
    parameters: str | None = None,
    attributes: str = "",
    replaces: str = "",
    imported_from: str = "",
    **methods: str,
) -> Target:
    """A ``Target``, with lists of names as words."""
    return Target(
        module,
        name,
        tuple(used_by.split()),
        why,
        parameters,
        methods,
        tuple(attributes.split()),
        tuple(replaces.split()),
        imported_from or module,
    )
