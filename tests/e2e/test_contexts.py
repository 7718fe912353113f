"""Stored contexts on real engines, on the CPU, one process after the other: equal answers, only the rest computed."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vllm_relational.context.vllm_arguments import context_arguments
from vllm_relational.context.vllm_report import loaded_of
from vllm_relational.vllm_ext.process.live_engine import shutdown

BLOCK = 32
ENGINE = {
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 192,  # long prompts in several steps
    "block_size": BLOCK,
    "num_gpu_blocks_override": 120,
    "skip_tokenizer_init": True,
    "enforce_eager": True,
}
DIPR = {
    "attention_backend": "CUSTOM",
    "worker_cls": "vllm_relational.vllm_ext.worker.Worker",
    "additional_config": {"relational": {"dipr": {"dense_below": 64, "sinks": 16, "recent": 32, "alpha": 0.05}}},
}
TOKEN_EXACT = {
    "scheduler_cls": "vllm_relational.vllm_ext.scheduler.RelationalScheduler",
    "additional_config": {"relational": {"order": "arrival", "token_exact": True}},
}
LENGTHS = (BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 5 * BLOCK + 1, 300, 12 * BLOCK + 1, 700)


class Said(NamedTuple):
    """Of each prompt. cached includes what was promised but not loaded."""

    answers: list[list[int]]
    cached: list[int]
    loaded: list[int]
    lost: list[int]


def prompts() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(5, 1200) for _ in range(length)] for length in LENGTHS]


def stored_tokens(length: int) -> int:
    return length // BLOCK * BLOCK


def ask(llm: Any, rows: list[list[int]], together: bool = True) -> Said:
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False)
    batches = [rows] if together else [[row] for row in rows]
    outputs = [
        output
        for batch in batches
        for output in llm.generate([{"prompt_token_ids": row} for row in batch], parameters, use_tqdm=False)
    ]
    told = [loaded_of(output.kv_transfer_params) for output in outputs]
    return Said(
        [list(output.outputs[0].token_ids) for output in outputs],
        [output.num_cached_tokens for output in outputs],
        [each.tokens for each in told],
        [each.lost for each in told],
    )


class Engines:
    """Starts engines, each in a process of its own, on one folder, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, model: Path, ask: Callable[[Any], Any], **more: Any) -> Any:
        from vllm import LLM

        llm = LLM(str(model), **ENGINE, **context_arguments(self.folder, True), **more)
        try:
            return ask(llm)
        finally:
            shutdown(llm)

    @property
    def layouts(self) -> list[Path]:
        return sorted(path for path in (self.folder / "vllm-blocks").iterdir() if (path / "layout.json").exists())

    def files(self, layout: Path) -> dict[str, Path]:
        return {path.stem: path for path in layout.rglob("*.kv")}


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose weights may be exchanged."""
    return Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("contexts") / "model"))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Engines(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def first(engines: Engines, model: Path) -> Said:
    """By the process that computes."""
    return engines.run(model, lambda llm: ask(llm, prompts()))


def test_a_second_process_computes_the_rest_only(engines: Engines, model: Path, first: Said) -> None:
    assert first.loaded == [0] * len(LENGTHS)
    (layout,) = engines.layouts
    assert len(engines.files(layout)) == sum(length // BLOCK for length in LENGTHS)

    def second(llm: Any) -> list[Said]:
        cold = ask(llm, prompts())
        assert llm.reset_prefix_cache()
        damage(engines.files(layout))
        bad = ask(llm, prompts(), together=False)
        assert llm.reset_prefix_cache()
        ask(llm, prompts())  # what was damaged behind a block that was missing is found only now
        assert llm.reset_prefix_cache()
        return [cold, bad, ask(llm, prompts())]

    loaded, bad, mended = engines.run(model, second)
    whole = [stored_tokens(length) for length in LENGTHS]
    assert loaded == (first.answers, whole, whole, [0] * len(LENGTHS))
    # From the block that is not there any more, or not as it was, all is computed, and stored again.
    assert bad.answers == first.answers
    assert any(bad.lost) and sum(bad.loaded) < sum(whole)
    assert [cached - lost for cached, lost in zip(bad.cached, bad.lost, strict=True)] == bad.loaded
    assert mended == loaded
    assert len(list((engines.folder / "vllm-blocks" / "damaged").iterdir())) >= 3


def damage(files: dict[str, Path]) -> None:
    """Every 7th block: a flipped bit, a short file, or none."""
    for place, name in enumerate(sorted(files)[::7]):
        content = bytearray(files[name].read_bytes())
        if place % 3 == 0:
            content[len(content) // 2] ^= 1
            files[name].write_bytes(content)
        elif place % 3 == 1:
            os.truncate(files[name], len(content) - 1)
        else:
            files[name].unlink()


def test_an_engine_of_another_attention_shares_nothing(engines: Engines, model: Path, first: Said) -> None:
    sparse = engines.run(model, lambda llm: ask(llm, prompts()), **DIPR)
    assert sparse.loaded == [0] * len(LENGTHS)
    assert len(engines.layouts) == 2
    again = engines.run(model, lambda llm: ask(llm, prompts()), **DIPR)
    assert again.answers == sparse.answers
    assert again.loaded == [stored_tokens(length) for length in LENGTHS]


def test_another_model_under_the_same_name_shares_nothing(
    engines: Engines, model: Path, first: Said, reviews: Any
) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).parents[1] / "tiny_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._write_weights(model, seed=1)
    before = len(engines.layouts)
    rows = [*prompts(), [*prompts()[-1][: 6 * BLOCK + 9], 7, 8, 9]]

    def play(llm: Any) -> tuple[Said, Said]:
        cold = ask(llm, rows[:-1])
        return cold, ask(llm, rows[-1:])

    # Beside it, token-exact reuse: the row that leaves another inside a block computes what is its own.
    cold, partial = engines.run(model, play, **TOKEN_EXACT)
    assert cold.loaded == [0] * len(LENGTHS) and cold.answers != first.answers
    assert len(engines.layouts) == before + 1
    assert partial.cached == [6 * BLOCK + 9] and partial.loaded == [0]
    weights = {json.loads((layout / "layout.json").read_text())["weights"] for layout in engines.layouts}
    assert len(weights) == 2

    def after(llm: Any) -> tuple[Said, Said]:
        return ask(llm, rows[-1:]), ask(llm, rows[:-1])

    loaded, rest = engines.run(model, after, **TOKEN_EXACT)
    assert loaded == (partial.answers, [6 * BLOCK], [6 * BLOCK], [0])
    assert rest.answers == cold.answers
