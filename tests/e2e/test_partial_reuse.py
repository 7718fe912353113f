"""Token-exact reuse on a real engine: the answers of stock vLLM, and no shared token computed twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vllm_relational.vllm_ext.process.live_engine import shutdown

OURS = {
    "scheduler_cls": "vllm_relational.vllm_ext.scheduler.RelationalScheduler",
    "additional_config": {"relational": {"order": "arrival", "token_exact": True}},
}
BLOCK_SIZE = 32
ENGINE = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 12,
    "block_size": BLOCK_SIZE,
    "num_gpu_blocks_override": 40,
    "skip_tokenizer_init": True,
    "disable_log_stats": False,
    "enforce_eager": True,
}
GROUPS, ROWS = 3, 8


class Played(NamedTuple):
    """answers, cached: by batch, then by row. preemptions: over all batches."""

    answers: list[list[list[int]]]
    cached: list[list[int]]
    preemptions: float


def rows_of(seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """One row of each group, and the other rows: 70 to 90 tokens shared in a group, then 10 to 50 of their own."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(5, 1200) for _ in range(draw.randint(low, high))]

    groups = [(stem := tokens(70, 90)) and [stem + tokens(10, 50) for _ in range(ROWS)] for _ in range(GROUPS)]
    first = [rows[0] for rows in groups]
    return first, [row for place in zip(*(rows[1:] for rows in groups), strict=True) for row in place]


def play(llm: Any) -> Played:
    """Two tables from a cold cache, one row of each group ahead; then long answers, too many for the cache."""
    answers, cached = [], []
    for seed, max_tokens in ((0, 4), (1, 4), (2, 90)):
        assert llm.reset_prefix_cache()
        for batch in rows_of(seed):
            parameters = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, "detokenize": False}
            outputs = llm.generate([{"prompt_token_ids": row} for row in batch], sampling(**parameters), use_tqdm=False)
            answers.append([list(output.outputs[0].token_ids) for output in outputs])
            cached.append([output.num_cached_tokens for output in outputs])
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    return Played(answers, cached, metrics["vllm:num_preemptions"].value)


def sampling(**parameters: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**parameters)


@pytest.fixture(scope="module")
def played(tiny_model: Path) -> Iterator[dict[str, Played]]:
    from vllm import LLM

    results = {}
    for name, more in (("stock", {}), ("ours", OURS)):
        llm = LLM(str(tiny_model), **ENGINE, **more)
        try:
            results[name] = play(llm)
        finally:
            shutdown(llm)
    yield results


def test_answers_are_those_of_stock_also_under_preemption(played: dict[str, Played]) -> None:
    assert played["ours"].preemptions > 0 and played["stock"].preemptions > 0
    assert played["ours"].answers == played["stock"].answers


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_compute_what_is_their_own(played: dict[str, Played], seed: int) -> None:
    first, rest = rows_of(seed)
    computed = [len(row) - hit for row, hit in zip(rest, played["ours"].cached[2 * seed + 1], strict=True)]
    stock = [len(row) - hit for row, hit in zip(rest, played["stock"].cached[2 * seed + 1], strict=True)]

    for row, tokens in zip(rest, computed, strict=True):
        # The first row of the group is cached but for its last, unfinished block.
        best = max(shared(row, other[: len(other) // BLOCK_SIZE * BLOCK_SIZE]) for other in first)
        assert tokens <= max(len(row) - best, 1) + 1
    assert sum(computed) < 0.8 * sum(stock)


def shared(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))
