"""Real vLLM 0.32.0 on a tiny random model: one engine for the tests that do not kill it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from vllm_relational import RelationalLLM

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "airbnb_reviews.parquet"
ENGINE_ARGS = {"dtype": "float32", "max_model_len": 2048, "max_num_seqs": 32}

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.vllm)
            if missing:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed"))


@pytest.fixture(scope="session")
def reviews() -> pd.DataFrame:
    return pd.read_parquet(EXAMPLE)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, reviews: pd.DataFrame) -> Path:
    spec = importlib.util.spec_from_file_location("tiny_model", HERE.parent / "tiny_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    texts = (reviews["comments"] + reviews["description"]).tolist()
    return module.make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", texts)


@pytest.fixture(scope="session")
def llm(tiny_model: Path) -> Iterator[RelationalLLM]:
    with RelationalLLM(str(tiny_model), **ENGINE_ARGS) as shared:
        yield shared
