"""vLLM's real scheduler with a worker that keeps, instead of keys and values, what they were computed from.

Every position of every block holds a fingerprint of the tokens up to there. The worker copies and writes blocks as the
model runners do, and fails when a request would attend to anything but its own prefix.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

init_none_hash(sha256)
BLOCK_SIZE = 4
VOCABULARY = 7


def make_scheduler(scheduler_cls: type, model: Path, num_blocks: int, **settings: Any) -> Any:
    """A scheduler for ``num_blocks`` usable blocks of four tokens.

    settings: ``max_num_seqs``, ``max_num_batched_tokens``, ``policy``; ``spec`` for another kind of attention;
    ``transfer`` for a KV connector, as a ``KVTransferConfig``;
    ``relational`` for our scheduler: token-exact reuse and nothing else unless it says so.
    """
    relational = settings.pop("relational", {"order": "arrival", "token_exact": True})
    spec = settings.pop("spec", None) or full_attention()
    caching, transfer = settings.pop("enable_prefix_caching", True), settings.pop("transfer", None)
    limits = {"max_num_seqs": 8, "max_num_batched_tokens": 64, **settings}
    config = VllmConfig(
        model_config=ModelConfig(model=str(model), dtype="float32", max_model_len=64, skip_tokenizer_init=True),
        cache_config=CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=caching),
        scheduler_config=SchedulerConfig(
            max_model_len=64, is_encoder_decoder=False, enable_chunked_prefill=True, async_scheduling=True, **limits
        ),
        device_config=DeviceConfig("cpu"),
        additional_config={"relational": relational},
        kv_transfer_config=transfer,
    )
    config.cache_config.block_size = BLOCK_SIZE  # whatever the platform prefers
    config.cache_config.num_gpu_blocks = num_blocks + 1  # vLLM sets one aside
    specs = spec if isinstance(spec, list) else [spec]
    groups = [KVCacheGroupSpec([f"layer.{number}"], spec) for number, spec in enumerate(specs)]
    return scheduler_cls(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(num_blocks + 1, kv_cache_tensors=[], kv_cache_groups=groups),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_SIZE,
        log_stats=True,
    )


def full_attention(**changes: Any) -> FullAttentionSpec:
    shape = {"block_size": BLOCK_SIZE, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
    return FullAttentionSpec(**{**shape, **changes})


def sliding_window() -> SlidingWindowSpec:
    return SlidingWindowSpec(
        block_size=BLOCK_SIZE, num_kv_heads=1, head_size=8, dtype=torch.float32, sliding_window=2 * BLOCK_SIZE
    )


def make_request(name: str, tokens: list[int], max_tokens: int = 1, **more: Any) -> Request:
    """A request with block hashes, as the engine would make it."""
    parameters = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    parameters.update_from_generation_config({}, eos_token_id=VOCABULARY)
    hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
    return Request(name, list(tokens), parameters, None, block_hasher=hasher, **more)


class Worker:
    """Runs steps in the order in which they were scheduled."""

    def __init__(self, num_blocks: int) -> None:
        self.store = [[None] * BLOCK_SIZE for _ in range(num_blocks + 1)]
        self.tokens: dict[str, list[int]] = {}
        self.salts: dict[str, Any] = {}
        self.tables: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}  # tokens computed for each request, over all steps
        self.copies = 0

    def execute(self, step: Any) -> ModelRunnerOutput:
        starts = dict(self._new(step)) | dict(self._old(step))
        for source, target in step.kv_cache_block_copies or ():
            assert source != target
            self.store[target] = list(self.store[source])
            self.copies += 1
        for name, start in starts.items():
            self._write(name, start, start + step.num_scheduled_tokens[name])
        sampled = [self._attend(name, start + step.num_scheduled_tokens[name]) for name, start in starts.items()]
        return ModelRunnerOutput(
            req_ids=list(starts),
            req_id_to_index={name: index for index, name in enumerate(starts)},
            sampled_token_ids=sampled,
        )

    def _new(self, step: Any) -> Iterator[tuple[str, int]]:
        for new in step.scheduled_new_reqs:
            self.tokens[new.req_id] = list(new.prefill_token_ids or new.prompt_token_ids)
            self.tables[new.req_id] = list(new.block_ids[0])
            yield new.req_id, new.num_computed_tokens

    def _old(self, step: Any) -> Iterator[tuple[str, int]]:
        old = step.scheduled_cached_reqs
        for name, blocks, start in zip(old.req_ids, old.new_block_ids, old.num_computed_tokens, strict=True):
            if name in old.resumed_req_ids:
                self.tables[name] = []
                self.tokens[name] = list(old.all_token_ids.get(name, self.tokens[name]))
            self.tables[name].extend(blocks[0] if blocks else ())
            yield name, start

    def _fingerprint(self, name: str, position: int) -> tuple[Any, ...]:
        return (self.salts.get(name), *self.tokens[name][: position + 1])

    def _write(self, name: str, start: int, end: int) -> None:
        for position in range(start, end):
            block = self.tables[name][position // BLOCK_SIZE]
            self.store[block][position % BLOCK_SIZE] = self._fingerprint(name, position)
        self.computed[name] = self.computed.get(name, 0) + end - start

    def _attend(self, name: str, end: int) -> list[int]:
        for position in range(end):
            block = self.tables[name][position // BLOCK_SIZE]
            found = self.store[block][position % BLOCK_SIZE]
            assert found == self._fingerprint(name, position), f"{name} reads {found} at {position}"
        if end < len(self.tokens[name]):
            return []
        token = hash(self._fingerprint(name, end - 1)[1:]) % VOCABULARY
        self.tokens[name].append(token)
        return [token]


class Engine:
    """A scheduler and its worker, ``in_flight`` steps ahead of the answers."""

    def __init__(self, scheduler: Any, in_flight: int = 1) -> None:
        self.scheduler = scheduler
        self.worker = Worker(scheduler.kv_cache_config.num_blocks - 1)
        self.in_flight = in_flight
        self.steps: deque[tuple[Any, ModelRunnerOutput]] = deque()
        self.answers: dict[str, list[int]] = {}
        self.preemptions = 0

    def add(self, request: Request) -> None:
        self.worker.salts[request.request_id] = (
            request.cache_salt,
            request.lora_request and request.lora_request.lora_name,
        )
        self.scheduler.add_request(request)

    def step(self) -> None:
        """Schedule one step and take in the answers of the oldest, once more steps are in flight than allowed."""
        step = self.scheduler.schedule()
        self.preemptions += len(step.preempted_req_ids or ())
        if step.total_num_scheduled_tokens:
            self.steps.append((step, self.worker.execute(step)))
        if self.steps and (len(self.steps) > self.in_flight or not step.total_num_scheduled_tokens):
            self._take_in()
        check_pool(self.scheduler)

    def _take_in(self) -> None:
        outputs = self.scheduler.update_from_output(*self.steps.popleft())
        for answers in outputs.values():
            for answer in answers.outputs:
                self.answers.setdefault(answer.request_id, []).extend(answer.new_token_ids)

    def drain(self) -> None:
        while self.steps:
            self._take_in()

    def run(self, limit: int = 2000) -> dict[str, list[int]]:
        """Until all requests are answered."""
        while self.scheduler.has_unfinished_requests() or self.steps:
            self.step()
            limit -= 1
            assert limit, "requests are left over"
        return self.answers


def check_pool(scheduler: Any) -> None:
    """Free and used blocks are all blocks, and none is both."""
    pool = scheduler.kv_cache_manager.block_pool
    free = {block.block_id for block in pool.free_block_queue.get_all_free_blocks()}
    used = {block.block_id for block in pool.blocks if block.ref_cnt > 0 and not block.is_null}
    assert len(free) == pool.get_num_free_blocks()
    assert not free & used
    assert len(free) + len(used) == pool.num_gpu_blocks - 1
