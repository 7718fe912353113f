"""vLLM's own attention objects, no engine, no weights; skipped where vLLM is not installed."""

from __future__ import annotations

import importlib.util

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]


@pytest.fixture
def no_runner(monkeypatch):
    """No model runner is known, and none is afterwards."""
    monkeypatch.setattr("vllm_relational.vllm_ext.attention.prompt_lengths._runners", {})
