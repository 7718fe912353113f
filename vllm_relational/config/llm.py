"""The arguments of ``RelationalLLM``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_relational.config.kinds import AnEngine, File, Flag, ModelName, Named, Number, Order, Settings, Text, Whole
from vllm_relational.config.names import DEFAULT_ORDER
from vllm_relational.config.option import Cli, Options, option, unknown_option
from vllm_relational.records import RelationalError

ASKING = ("run", "bench", "sql")
KEEPING = ("run", "sql", "serve")
CONTEXTS = ("contexts", "contexts_size", "contexts_memory")
"""Options of stored contexts."""


class LlmOptions(Options):
    """Arguments of ``RelationalLLM`` but for those of the engine."""

    model: ModelName | None = option(
        None,
        "folder or hub name; with ``base_url`` the server's model name, or None for its only one.",
        "give a folder or hub name",
    )
    base_url: Named | None = option(
        None,
        "an OpenAI-compatible server (``http://host:8000/v1``) instead of vLLM in this process.",
        "give an address, e.g. http://localhost:8000/v1",
    )
    tokenizer: ModelName | None = option(
        None,
        "folder or hub name, where it is not the model's; with ``base_url`` it makes token counts exact.",
        "give a folder or hub name",
    )
    order: Order = option(
        DEFAULT_ORDER, "default field and row order of queries.", "give the name of a planner, e.g. 'tree'"
    )
    engine: AnEngine = option(
        None,
        "an engine of your own instead of vLLM and servers, see ``engine/base.py``.",
        "give an object with start, ask, reset_cache and close (engine/base.py)",
    )
    quiet: Flag = option(True, "hide vLLM's log.", "give True or False")
    scheduler: Settings | None = option(
        None,
        "with vLLM in this process, settings of our scheduler (``vllm_ext/settings.py``), as "
        '``{"token_exact": True}``. None keeps vLLM\'s own; rows come in planned order in any case.',
        "give settings, e.g. {'token_exact': True}",
    )
    attention: Text | None = option(
        None,
        'with vLLM in this process, ``"dipr"`` decodes long contexts by sparse attention (docs/dipr.md). None keeps '
        "vLLM's own.",
        "use 'dipr', or None for vLLM's own",
    )
    dipr: Settings | None = option(
        None, 'settings of that attention, as ``{"alpha": 0.001}``.', "give settings, e.g. {'alpha': 0.001}"
    )
    contexts: File | None = option(
        None,
        "with vLLM in this process, a folder that keeps what was computed of prompts, for later jobs in any process "
        "(docs/context_vllm.md).",
        "give the path of a folder",
        cli=Cli("Folder that keeps what was computed of prompts, for later jobs in any process.", KEEPING, "contexts"),
    )
    contexts_size: Number | None = option(
        None,
        "GiB that the folder may take; what was used longest ago goes first. None: no limit.",
        "give GiB above 0",
        gt=0,
        cli=Cli("With --contexts: GiB that the folder may take; default: no limit.", KEEPING, "contexts"),
    )
    contexts_memory: Number | None = option(
        None,
        "with ``contexts`` on a GPU, GiB of CPU memory that they pass through: a longer context is not loaded. None: a "
        "quarter of the machine's, as far as there is shared memory.",
        "give GiB above 0",
        gt=0,
        cli=Cli(
            "With --contexts on a GPU: GiB of CPU memory that they pass through; default: a quarter.",
            KEEPING,
            "contexts",
        ),
    )


class ServerOptions(Options):
    """Arguments of ``RelationalLLM`` for a server, see ``EndpointEngine``."""

    api_key: Text | None = option(
        None, "None: OPENAI_API_KEY, or no key. It is never shown.", "give a text, or set OPENAI_API_KEY"
    )
    concurrency: Whole = option(
        32,
        "requests in flight at most, with those whose answers were not taken yet. They are handed over in the order "
        "the prompts come; the server may see those that leave within the same millisecond in another order.",
        "give a whole number of requests from 1 to 4,096",
        ge=1,
        le=4096,
        cli=Cli("With --base-url: requests in flight.", ASKING, "server", min=1),
    )
    timeout_s: Number = option(
        600.0,
        "seconds for the whole answer to one attempt.",
        "give seconds above 0",
        gt=0,
        le=1e8,
        cli=Cli(
            "With --base-url: seconds for the whole answer to one attempt; 600 by default.",
            ASKING,
            "server",
            flag="--timeout",
            default=None,
        ),
    )
    max_retries: Whole = option(
        5,
        "further attempts after connection errors, time-outs and broken answers (once), 408, 409, 425, 429 and 5xx.",
        "give a whole number from 0",
        ge=0,
        le=1_000_000,
        cli=Cli(
            "With --base-url: further attempts after a failed request; 5 by default.",
            ASKING,
            "server",
            flag="--retries",
            default=None,
        ),
    )
    retry_delay_s: Number = option(
        0.5,
        "seconds before the first of them; doubles up to 8, unless the server sends Retry-After.",
        "give seconds from 0",
        ge=0,
        le=1e8,
    )
    served_as: Named | None = option(
        None,
        "the model's name in the server's replies, where it is unlike ``model`` (see ``ExpectedModel``).",
        "give a model's name",
        cli=Cli("With --base-url: the model's name in replies, where it is unlike the one asked.", ASKING, "server"),
    )


def llm_options(given: Mapping[str, Any], engine_args: dict[str, Any]) -> LlmOptions:
    """The arguments of ``RelationalLLM``; ``engine_args`` for a server are read in place, vLLM reads its own."""
    read = LlmOptions.read(given)
    if read.contexts is None and (read.contexts_size is not None or read.contexts_memory is not None):
        raise RelationalError("contexts_size and contexts_memory need a folder: give contexts, or leave them out")
    if read.base_url is not None:
        server = ServerOptions.read(engine_args)
        engine_args |= {name: getattr(server, name) for name in engine_args}
        return read
    for name in engine_args:
        if name in ServerOptions.model_fields:
            raise RelationalError(f"{name} is for a server: name one with base_url, or leave {name} out")
        if read.engine is not None:
            known = {*LlmOptions.model_fields, *ServerOptions.model_fields}
            raise RelationalError(f"an engine is given, which takes no arguments here: {unknown_option(name, known)}")
    return read
