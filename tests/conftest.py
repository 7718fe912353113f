"""Fixtures that several folders share: light, no torch, no vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

TRAINING_TEXTS = [
    '"name": "Quiet room",\n"comments": "Lovely!",\n"score": 4,\n',
    "Is this review positive? Answer yes or no.",
]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with a chat template and a minimal config: enough to plan, not to run."""
    from tiny_model import MAX_POSITIONS, _write_tokenizer

    folder = tmp_path_factory.mktemp("tiny-tokenizer")
    _write_tokenizer(folder, TRAINING_TEXTS * 20)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": MAX_POSITIONS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
