"""Turns the death of vLLM's engine process into an exception.

In vLLM 0.32.0 a killed engine process (out of memory, kill -9) makes the client clean up and its output thread end
without putting anything into the output queue, so that a caller inside ``LLMEngine.step()`` waits for ever
(v1/engine/core_client.py, ``MPClient.start_engine_core_monitor`` and ``SyncMPClient.process_outputs_socket``).
Drop this file when vLLM puts the exception there itself.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

POLL_SECONDS = 0.25


def watch_engine(llm: Any) -> None:
    """Start a daemon thread that raises ``EngineDeadError`` in whoever waits for an engine process that is gone.

    That is ``step()``, and calls such as ``reset_prefix_cache()``, which wait for an answer of their own.

    llm: a ``vllm.LLM``. Does nothing when the engine runs inside this process.
    """
    client = llm.llm_engine.engine_core
    if hasattr(client, "outputs_queue") and hasattr(client, "resources"):
        thread = threading.Thread(target=_watch, args=(weakref.ref(client),), name="engine-liveness", daemon=True)
        thread.start()


def _watch(client_ref: weakref.ref[Any]) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    pause = threading.Event()
    while True:
        client = client_ref()
        if client is None:
            return
        if client.resources.engine_dead:
            client.outputs_queue.put_nowait(EngineDeadError())
            for waiting in list(client.utility_results.values()):
                if not waiting.done():
                    waiting.set_exception(EngineDeadError())
            return
        del client
        pause.wait(POLL_SECONDS)
