"""The ``vllm.general_plugins`` entry point: vLLM calls ``register`` in every process it starts, perhaps twice."""

from __future__ import annotations

import os

_registered = False


def register() -> None:
    """Set up what this package adds to a vLLM process: names that an engine may ask for, and in processes that we
    started, the end with their owner."""
    global _registered
    if _registered:
        return
    _registered = True
    from vllm_relational.vllm_ext.attention.registration import register_attention

    register_attention()
    if "VLLM_RELATIONAL_OWNER" in os.environ:
        from vllm_relational.vllm_ext.process.orphans import follow_owner

        follow_owner()
