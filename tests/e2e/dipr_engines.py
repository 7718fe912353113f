"""Real engines with sparse attention; prints one JSON line a run.

Arguments: model folder. The engine's core is in this process, so that its scheduler can be narrowed; the worker is
not: ``CheckIndex`` goes into it through vLLM's ``worker_extension_cls``.
"""

from __future__ import annotations

import json
import os
import random
import sys
from typing import Any

from vllm_relational.vllm_ext.settings import WORKER

BLOCK_SIZE = 32
SPARSE = {"alpha": 0.5, "sinks": 16, "recent": 32, "dense_below": 0, "dense_layers": 0}
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": BLOCK_SIZE,
    "max_model_len": 512,
    "max_num_seqs": 6,
    "max_num_batched_tokens": 2048,
    "skip_tokenizer_init": True,
    "disable_log_stats": False,
}


class CheckIndex:
    """Methods for the worker."""

    vllm_config: Any
    model_runner: Any

    def attend_to_all(self) -> None:
        """From now on alpha is 0."""
        from dataclasses import replace

        for layer in self.vllm_config.compilation_config.static_forward_context.values():
            layer.impl.decoder.settings = replace(layer.impl.settings, alpha=0)

    def stale_groups(self, blocks: list[int]) -> list[int]:
        """How many groups of these full blocks there are, over layers, and how many change when quantised again."""
        import torch

        from vllm_relational.sparse import codec
        from vllm_relational.sparse.pages import PageLayout

        checked = stale = 0
        for cache in self.model_runner.kv_caches:
            again = cache.clone()
            pages = PageLayout(BLOCK_SIZE, 32, cache.dtype).views(again)
            group = pages.layout.group
            for place in range(group - 1, BLOCK_SIZE, group):
                codec.quantise_groups(pages, torch.tensor(blocks) * BLOCK_SIZE + place)
                same = again.view(torch.uint8) == cache.view(torch.uint8)
                checked, stale = checked + len(blocks), stale + int((~same.flatten(1).all(1)).sum())
                again.copy_(cache)
        return [checked, stale]


def prompts(seed: int, count: int, low: int, high: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(5, 1200) for _ in range(draw.randint(low, high))] for _ in range(count)]


class Engine:
    def __init__(self, model: str, **more: Any) -> None:
        from vllm import LLM

        self.llm = LLM(model, **ENGINE, **more)

    def answer(self, given: list[list[int]], max_tokens: int, *, cold: bool = True, at_once: bool = True) -> dict:
        """Answers and cached tokens, from an empty prefix cache or not, all prompts together or one after another."""
        from vllm import SamplingParams

        if cold:
            assert self.llm.reset_prefix_cache()
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        before, outputs = self.preemptions(), []
        for batch in [given] if at_once else [[prompt] for prompt in given]:
            outputs += self.llm.generate([{"prompt_token_ids": row} for row in batch], params, use_tqdm=False)
        return {
            "answers": [list(output.outputs[0].token_ids) for output in outputs],
            "cached": [output.num_cached_tokens for output in outputs],
            "preemptions": self.preemptions() - before,
        }

    def answer_interrupted(self, given: list[list[int]], max_tokens: int, every: int) -> dict:
        """Answers to all prompts together, which every so many steps all lose what they have in the cache."""
        from vllm import SamplingParams

        engine, answers, before = self.llm.llm_engine, {}, self.preemptions()
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        for number, row in enumerate(given):
            engine.add_request(str(number), {"prompt_token_ids": row}, params)
        for step in range(1, 100_000):
            if not engine.has_unfinished_requests():
                break
            for output in engine.step():
                answers[output.request_id] = list(output.outputs[0].token_ids)
            if step % every == 0:
                assert self.llm.reset_prefix_cache(reset_running_requests=True)
        rows = [answers[str(number)] for number in range(len(given))]
        return {"answers": rows, "preemptions": self.preemptions() - before}

    def preemptions(self) -> float:
        return {metric.name: metric for metric in self.llm.get_metrics()}["vllm:num_preemptions"].value  # type: ignore[attr-defined]

    @property
    def core(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]

    def stale_groups(self) -> list[int]:
        """Of all blocks that the prefix cache may hand out."""
        pool = self.core.scheduler.kv_cache_manager.block_pool
        blocks = [block.block_id for block in pool.blocks if block.block_hash is not None]
        (found,) = self.llm.collective_rpc("stale_groups", args=(blocks,))
        return found

    def num_blocks(self) -> int:
        return int(self.core.scheduler.kv_cache_config.num_blocks)

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


def say(name: str, **line: Any) -> None:
    print("RUN " + json.dumps({"name": name, **line}), flush=True)


def ours(dipr: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Engine arguments; more: settings of the scheduler."""
    config = {"relational": {"dipr": dipr, **more}}
    return {"attention_backend": "CUSTOM", "additional_config": config}


def stock_and_exact(model: str) -> None:
    """As many blocks as 1 GiB holds, then the same requests."""
    rows = prompts(0, 6, 20, 400)
    exact = {**SPARSE, "alpha": 0}
    for name, more in (("stock", {}), ("exact", ours(exact))):
        engine = Engine(model, **more)
        say(name, num_blocks=engine.num_blocks(), **engine.answer(rows, 24))
        say(f"{name}, many", **engine.answer(many(), 40))
        engine.close()


def many() -> list[list[int]]:
    """Too many for the cache of ``sparse``."""
    return prompts(4, 5, 150, 170)


def sparse(model: str) -> None:
    """Few blocks: what is cached is evicted, and long answers preempt each other."""
    ours_with_copies = ours(SPARSE, token_exact=True, order="arrival")
    engine = Engine(
        model,
        num_gpu_blocks_override=32,
        scheduler_cls="vllm_relational.vllm_ext.scheduler.RelationalScheduler",
        worker_extension_cls="dipr_engines.CheckIndex",
        worker_cls=WORKER,
        **ours_with_copies,
    )
    rows = prompts(1, 3, 150, 193) + prompts(2, 1, 193, 193)  # 193: a cached prefix leaves one token
    say("fresh", **engine.answer(rows, 8, at_once=False), index=engine.stale_groups())
    engine.answer(rows, 8)
    say("cached", **engine.answer(rows, 8, cold=False), index=engine.stale_groups())
    engine.core.scheduler.max_num_scheduled_tokens = 48
    say("in chunks", **engine.answer(rows, 8))
    engine.core.scheduler.max_num_scheduled_tokens = 2048
    parting = [row[:137] + prompts(3, 1, 30, 30)[0] for row in rows[:3]]  # inside a block
    say("parting, fresh", **engine.answer(parting, 8, at_once=False))
    engine.answer(rows[:3], 1)
    say("parting, copied", **engine.answer(parting, 8, cold=False), index=engine.stale_groups())
    say("many, fresh", **engine.answer(many(), 40, at_once=False))
    say("many, preempted", **engine.answer(many(), 40), index=engine.stale_groups())
    say("many, interrupted", **engine.answer_interrupted(many(), 40, every=12))
    engine.llm.collective_rpc("attend_to_all")
    say("many, preempted, alpha 0", **engine.answer(many(), 40))
    engine.close()


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    {"exact": stock_and_exact, "sparse": sparse}[sys.argv[2]](sys.argv[1])


if __name__ == "__main__":
    main()
