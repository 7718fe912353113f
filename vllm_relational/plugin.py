"""The ``vllm.general_plugins`` entry point: vLLM calls ``register`` in every process it starts, perhaps twice."""

from __future__ import annotations

import os

_registered = False


def register() -> None:
    """Set up what this package adds to a vLLM process; nothing in processes that it did not start."""
    global _registered
    if _registered or "VLLM_RELATIONAL_OWNER" not in os.environ:
        return
    _registered = True
    from vllm_relational.vllm_ext.orphans import follow_owner

    follow_owner()
