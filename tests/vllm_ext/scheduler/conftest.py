"""vLLM's own scheduler objects, no engine, no weights; skipped where vLLM is not installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_relational import native

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]


@pytest.fixture(
    scope="module",
    autouse=True,
    params=[pytest.param("native", marks=[] if native.AVAILABLE else pytest.mark.skip), "reference"],
)
def parts(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs with the native parts and with their references in Python."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "reference":
            patch.setattr(native, "_NATIVE", None)
        yield request.param


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scheduler") / "tiny"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 128,
        "max_position_embeddings": 2048,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
