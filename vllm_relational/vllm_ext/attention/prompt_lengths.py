"""How long the prompts of a batch are: what vLLM 0.32.0 tells attention builders for one kind of model only.

An answer that a preempted request computes again looks like a prompt to them. Both model runners know the difference;
``vllm_ext/attention/worker.py`` says which runner is an engine's.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

_runners: dict[int, weakref.ref[Any]] = {}
"""By the identity of an engine's configuration, which the runner keeps alive."""


def follow(vllm_config: Any, runner: Any) -> None:
    """From now on, batches of the engine with this configuration are those of this model runner."""
    for key in [key for key, known in _runners.items() if known() is None]:
        del _runners[key]
    _runners[id(vllm_config)] = weakref.ref(runner)


def prompt_lengths(vllm_config: Any, common: Any) -> torch.Tensor | None:
    """Tokens of the prompts of a batch's requests, int32 on the host, without the rows that only pad it.

    0 where a row has no request. None where no runner is known, as under another worker than ours.
    vllm_config: of the engine; common: vLLM's ``CommonAttentionMetadata``.
    """
    known = _runners.get(id(vllm_config))
    runner = known() if known is not None else None
    if runner is None:
        return None
    states = getattr(runner, "req_states", None)
    if states is None:  # the first model runner: its rows are its requests
        lengths: torch.Tensor = runner.input_batch.num_prompt_tokens_cpu_tensor[: common.num_reqs]
        return lengths
    if common.req_idx is None:
        return None
    return torch.from_numpy(states.prompt_len.np[common.req_idx])
