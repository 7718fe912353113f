"""Every eviction and order on one engine in this process, a scheduler a run: prints one JSON line a run.

Arguments: model folder, number of blocks, and ``once`` for one run with the first settings, which also works where the
engine is a process of its own. Starting an engine takes 10 s, a scheduler nothing; so the engine is started once, as a
user would, with our scheduler, and later ones are put in its place with a cold cache. On a CPU vLLM never schedules
asynchronously; ``tests/scheduler`` does.
"""

from __future__ import annotations

import json
import random
import sys

from vllm import LLM, SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_relational.vllm_ext.scheduler.scheduler import RelationalScheduler

VOCABULARY = (10, 1200)
FIRST = {"eviction": "batch", "order": "prefix-tree", "deep_queue": 8}
RUNS = [
    {"eviction": eviction, "order": order, "deep_queue": 8}
    for eviction in ("lru", "fifo", "batch")
    for order in ("arrival", "prefix-tree")
]


def workload() -> tuple[list[list[int]], list[int]]:
    """48 prompts of 70 to 230 tokens over 8 prefixes, some twice; answers of 1 to 40 tokens."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(*VOCABULARY) for _ in range(count)]

    prefixes = [tokens(rng.randrange(20, 90) * 2) for _ in range(8)]
    tails = [tokens(rng.randrange(15, 25) * 2 + 1) for _ in range(20)]  # odd: no prompt ends with a whole block
    return [rng.choice(prefixes) + rng.choice(tails) for _ in range(48)], [rng.randrange(1, 41) for _ in range(48)]


def replace_scheduler(core, settings: dict | None, one_by_one: bool) -> None:
    old, config = core.scheduler, core.vllm_config
    config.additional_config = {"relational": settings} if settings else {}
    stock = AsyncScheduler if config.scheduler_config.async_scheduling else Scheduler
    core.scheduler = (RelationalScheduler if settings else stock)(
        vllm_config=config,
        kv_cache_config=old.kv_cache_config,
        structured_output_manager=core.structured_output_manager,
        block_size=old.block_size,
        hash_block_size=old.hash_block_size,
        log_stats=True,
    )
    core.scheduler.finished_req_ids = old.finished_req_ids  # the worker is still to hear of them
    if one_by_one:
        core.scheduler.max_num_running_reqs = core.scheduler.max_num_active_reqs = 1


def generate(llm: LLM, prompts: list[list[int]], lengths: list[int]) -> list:
    """All prompts wait before the first step."""
    params = [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False) for length in lengths]
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)


def run(llm: LLM, settings: dict | None, one_by_one: bool) -> None:
    core = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
    prompts, lengths = workload()
    if one_by_one:
        lengths = [1] * len(prompts)
    preemptions = 0
    preempt = core.scheduler._preempt_request

    def counting(*args, **kwargs):
        nonlocal preemptions
        preemptions += 1
        return preempt(*args, **kwargs)

    core.scheduler._preempt_request = counting
    outputs = generate(llm, prompts, lengths)
    line = {
        "settings": settings,
        "one_by_one": one_by_one,
        "scheduler": type(core.scheduler).__name__,
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "hits": [output.num_cached_tokens for output in outputs],
        "preemptions": preemptions,
        "counts": core.scheduler.counts() if settings else {},
    }
    print("RUN " + json.dumps(line), flush=True)


def main() -> None:
    model, num_blocks = sys.argv[1], int(sys.argv[2])
    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        max_model_len=512,
        max_num_seqs=6,
        max_num_batched_tokens=160,
        num_gpu_blocks_override=num_blocks,
        enable_prefix_caching=True,
        scheduler_cls="vllm_relational.vllm_ext.scheduler.RelationalScheduler",
        additional_config={"relational": FIRST},
    )
    if len(sys.argv) > 3:
        outputs = generate(llm, *workload())
        print("RUN " + json.dumps({"tokens": [list(output.outputs[0].token_ids) for output in outputs]}), flush=True)
        return
    core = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
    run(llm, FIRST, one_by_one=False)
    for settings in (None, *RUNS):
        replace_scheduler(core, settings, one_by_one=False)
        run(llm, settings, one_by_one=False)
    for eviction in ("lru", "batch"):
        settings = {"eviction": eviction, "order": "arrival"}
        replace_scheduler(core, settings, one_by_one=True)
        run(llm, settings, one_by_one=True)


if __name__ == "__main__":
    main()
