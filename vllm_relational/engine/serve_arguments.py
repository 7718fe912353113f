"""What the user chose among the arguments of vLLM's server, and our defaults for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vllm_relational.engine.starting import cpu_defaults, is_cpu_build

OPTIONS = {
    "dtype": ("--dtype",),
    "enforce_eager": ("--enforce-eager",),
    "optimization_level": ("--optimization-level", "-O"),
    "compilation_config": ("--compilation-config", "-cc"),
    "block_size": ("--block-size",),
    "kv_cache_memory_bytes": ("--kv-cache-memory-bytes",),
    "gpu_memory_utilization": ("--gpu-memory-utilization", "--device-memory-utilization"),
}
"""What ``cpu_defaults`` asks about -> the options of vLLM's server by which a user chooses it."""


def defaults_here(arguments: Sequence[str]) -> list[str]:
    """Options for vLLM's server on this machine where the user gives none: on a CPU those of an engine here."""
    if not is_cpu_build():
        return []
    names = [*names_of(arguments), *_names_in_file(arguments)]
    given = [choice for choice, options in OPTIONS.items() if any(_is_meant(o, n) for o in options for n in names)]
    return [part for name, value in cpu_defaults(given).items() for part in _option(name, value)]


def names_of(arguments: Sequence[str]) -> list[str]:
    """Without what follows an equals sign, and with hyphens, as vLLM's parser reads them."""
    return [argument.partition("=")[0].replace("_", "-") for argument in arguments]


def _option(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    return [option] if value is True else [option, str(value)]


def _is_meant(option: str, name: str) -> bool:
    """Whether ``name`` is the option, a beginning of it, its negation, or a part of it after a dot; a short option may
    have its value behind it without a space."""
    if not option.startswith("--"):
        return name.startswith(option)
    name = name.partition(".")[0]
    return len(name) > 2 and (option.startswith(name) or option.replace("--", "--no-", 1).startswith(name))


def _names_in_file(arguments: Sequence[str]) -> Iterator[str]:
    """The options in the YAML file of ``--config``; none where it cannot be read: vLLM says so."""
    import yaml

    for option, file in pairwise(arguments):
        if option == "--config":
            try:
                content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                continue
            yield from names_of([f"--{name}" for name in content] if isinstance(content, dict) else [])
