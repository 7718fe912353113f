"""vLLM's embedding task as an embedder of texts."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from vllm_relational.engine.interrupts import starting_engine
from vllm_relational.engine.release import stop_when_dropped, wait_for_stopped
from vllm_relational.engine.starting import (
    cpu_defaults,
    import_vllm,
    prepare_environment,
    refuse_second_run_of_script,
    start_message,
    without_unreadable_script,
)
from vllm_relational.records import EngineDiedError, RelationalError


class VllmEmbedder:
    """An ``embed.Embedder`` in a ``vllm.LLM`` with the pooling runner, started at the first text.

    name:        'vllm:' and the model, a folder or hub name, so that an index that it made names it.
    engine_args: any argument of ``vllm.LLM``.
    Texts longer than the model takes are cut at its length, as sentence-transformers does. ``close()`` frees its
    memory; do that before another engine starts on the same device.
    """

    def __init__(self, model: str, quiet: bool = True, **engine_args: Any) -> None:
        self.model, self.name = model, f"vllm:{model}"
        self._quiet, self._args = quiet, engine_args
        self._llm: Any = None
        self._stop_when_dropped: Any = None

    def __call__(self, texts: list[str]) -> np.ndarray:
        """float32 ``[len(texts), dimension]``. Raises ``EngineDiedError``; the next text then starts a new engine."""
        if not texts:
            return np.empty((0, 0), np.float32)
        llm = self._start()
        from vllm_relational.vllm_ext.process.live_engine import dead_engine_error

        try:
            outputs = llm.embed(texts, tokenization_kwargs={"truncate_prompt_tokens": -1}, use_tqdm=False)
        except dead_engine_error() as error:
            self._llm = None
            raise EngineDiedError("the vLLM engine process died while it embedded: run again") from error
        return np.array([output.outputs.embedding for output in outputs], np.float32)

    def close(self) -> None:
        """Stop the engine process and free its memory; the next text starts a new one."""
        from vllm_relational.vllm_ext.process.live_engine import shutdown

        if self._stop_when_dropped is not None:
            self._stop_when_dropped.detach()
        if self._llm is not None:
            shutdown(self._llm)
        self._llm = self._stop_when_dropped = None

    release = close  # as of ``embed.LocalEmbedder``: the memory is free, the next text takes it again

    def _start(self) -> Any:
        if self._llm is None:
            self._llm = self._start_engine()
        return self._llm

    def _start_engine(self) -> Any:
        refuse_second_run_of_script()
        wait_for_stopped()
        prepare_environment(self._quiet)
        vllm = import_vllm()
        from vllm_relational.vllm_ext.process.facts import is_cpu
        from vllm_relational.vllm_ext.process.live_engine import shutdown
        from vllm_relational.vllm_ext.process.orphans import owning_children

        defaults = {"runner": "pooling", "use_tqdm_on_load": not self._quiet}
        defaults |= cpu_defaults(self._args) if is_cpu() else {}
        try:
            with starting_engine(), owning_children(), without_unreadable_script():
                llm = vllm.LLM(self.model, **{**defaults, **self._args})
        except Exception as error:  # as in VllmEngine
            raise RelationalError(start_message(self.model, error)) from error
        self._stop_when_dropped = stop_when_dropped(self, functools.partial(shutdown, llm))
        return llm
