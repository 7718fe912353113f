"""vLLM's own scheduler, cache manager and requests, without an engine, a model or a forward pass."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK_SIZE = 2
TOKEN = 5  # what the model always says
init_none_hash(sha256)


def kv_cache_config(num_blocks: int, block_size: int = BLOCK_SIZE, specs: Sequence[Any] = ()) -> KVCacheConfig:
    full = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    groups = [KVCacheGroupSpec([f"layer{i}"], spec) for i, spec in enumerate(specs or [full])]
    return KVCacheConfig(num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=groups)


def make_manager(num_blocks: int, block_size: int = BLOCK_SIZE, events: bool = False) -> KVCacheManager:
    return KVCacheManager(
        kv_cache_config(num_blocks, block_size),
        max_model_len=8192,
        scheduler_block_size=block_size,
        hash_block_size=block_size,
        enable_caching=True,
        enable_kv_cache_events=events,
        log_stats=True,
    )


def make_request(
    name: str, tokens: Sequence[int], max_tokens: int = 1, arrival: float = 0.0, block_size: int = BLOCK_SIZE
) -> Request:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    params.update_from_generation_config({}, eos_token_id=1)
    return Request(
        name,
        list(tokens),
        params,
        None,
        arrival_time=arrival,
        block_hasher=get_request_block_hasher(block_size, sha256),
    )


@cache
def _model_folder() -> str:
    folder = Path(mkdtemp(prefix="config_only_"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 1000,
        "max_position_embeddings": 8192,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def make_scheduler(
    cls: Any,
    num_blocks: int,
    relational: dict[str, Any] | None = None,
    *,
    max_num_seqs: int = 16,
    block_size: int = BLOCK_SIZE,
    max_batched_tokens: int = 8192,
    async_scheduling: bool = True,
    policy: str = "fcfs",
    specs: Sequence[Any] = (),
    caching: bool = True,
) -> Any:
    config = VllmConfig(
        model_config=ModelConfig(_model_folder(), skip_tokenizer_init=True, dtype="float32", max_model_len=8192),
        scheduler_config=SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_batched_tokens,
            max_model_len=8192,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
            async_scheduling=async_scheduling,
            policy=policy,
        ),
        cache_config=CacheConfig(block_size=block_size, enable_prefix_caching=caching),
        additional_config={} if relational is None else {"relational": relational},
    )
    config.scheduler_config.async_scheduling = async_scheduling
    config.cache_config.num_gpu_blocks = num_blocks
    return cls(
        vllm_config=config,
        kv_cache_config=kv_cache_config(num_blocks, block_size, specs),
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_size,
        log_stats=True,
    )


def model_output(scheduled: Any, requests: dict[str, Request]) -> ModelRunnerOutput:
    """One token for each request whose prompt is computed by now."""
    names = list(scheduled.num_scheduled_tokens)
    done = [requests[name].num_computed_tokens >= requests[name].num_tokens for name in names]
    return ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: i for i, name in enumerate(names)},
        sampled_token_ids=[[TOKEN] if whole else [] for whole in done],
    )


class Run:
    """Steps a scheduler until nobody waits; remembers who started when and with how many tokens from the cache.

    in_flight: steps scheduled before the outputs of the first are there; 2 under asynchronous scheduling.
    """

    def __init__(
        self,
        scheduler: Any,
        requests: Iterable[Request],
        after_step: Callable[[], None] = lambda: None,
        in_flight: int = 1,
    ):
        self.scheduler = scheduler
        self.in_flight = in_flight
        self.pending: deque[Any] = deque()
        self.started: list[str] = []
        self.hits: dict[str, int] = {}
        self.finished: list[str] = []
        self.stats: list[Any] = []
        for request in requests:
            scheduler.add_request(request)
        while scheduler.has_unfinished_requests():
            self.step()
            after_step()

    def step(self) -> None:
        scheduled = self.scheduler.schedule()
        for new in scheduled.scheduled_new_reqs:
            if new.req_id not in self.hits:
                self.started.append(new.req_id)
                self.hits[new.req_id] = new.num_computed_tokens
        self.pending.append((scheduled, model_output(scheduled, self.scheduler.requests)))
        if len(self.pending) == self.in_flight or not scheduled.num_scheduled_tokens:
            self.receive(self.scheduler.update_from_output(*self.pending.popleft()))

    def receive(self, outputs: Any) -> None:
        self.stats += [outputs[0].scheduler_stats] if 0 in outputs else []
        for output in outputs.get(0).outputs if 0 in outputs else ():
            if output.finish_reason is not None:
                self.finished.append(output.request_id)


def check_pool(pool: Any, held: Iterable[Any]) -> None:
    """Free + held + null = total, no block in two places, and what is cached is where the map says."""
    free = pool.free_block_queue.get_all_free_blocks()
    assert len(free) == pool.free_block_queue.num_free_blocks
    free_ids = {block.block_id for block in free}
    held_ids = {block.block_id for block in held if not block.is_null}
    assert len(free_ids) == len(free) and not free_ids & held_ids
    assert len(free_ids) + len(held_ids) + 1 == pool.num_gpu_blocks
    assert all(block.ref_cnt == 0 for block in free)
    for key, found in pool.cached_block_hash_to_block._cache.items():
        for block in found.values() if isinstance(found, dict) else (found,):
            assert block.block_hash == key
            assert block.block_id in free_ids or block.block_id in held_ids
