"""How long the prompts of a batch are: what vLLM 0.32.0 tells attention builders for one kind of model only.

An answer that a preempted request computes again looks like a prompt to them. Both model runners know the difference;
``vllm_ext/worker.py`` says which runner is at work in this process.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

_runner: weakref.ref[Any] | None = None


def follow(runner: Any) -> None:
    """From now on, batches are those of this model runner."""
    global _runner
    _runner = weakref.ref(runner)


def prompt_lengths(common: Any) -> torch.Tensor | None:
    """Tokens of the prompts of a batch's requests, int32 on the host, without the rows that only pad it.

    0 where a row has no request. None where no runner is known, as under another worker than ours.
    common: vLLM's ``CommonAttentionMetadata``.
    """
    runner = _runner() if _runner is not None else None
    if runner is None:
        return None
    states = getattr(runner, "req_states", None)
    if states is None:  # the first model runner: its rows are its requests
        lengths: torch.Tensor = runner.input_batch.num_prompt_tokens_cpu_tensor[: common.num_reqs]
        return lengths
    if common.req_idx is None:
        return None
    return torch.from_numpy(states.prompt_len.np[common.req_idx])
