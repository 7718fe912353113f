"""How vLLM writes the hash of a cached block: that of its tokens and all before it, then its KV cache group."""

from __future__ import annotations

GROUP_BYTES = 4
"""Of the group's number, at the end. csrc/python/scheduler_bindings.cc reads the same; a test holds both to vLLM."""
