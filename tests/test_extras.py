"""Libraries of extras: a missing one is named with the command that installs it."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from vllm_relational import RelationalError
from vllm_relational.extras import import_faiss


def test_a_missing_library_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if it was not installed
    with pytest.raises(RelationalError, match=r"An index needs faiss: pip install 'vllm-relational\[semantic\]'"):
        import_faiss("An index")


def test_a_library_that_is_there_is_handed_out(monkeypatch):
    faiss = ModuleType("faiss")
    monkeypatch.setitem(sys.modules, "faiss", faiss)
    assert import_faiss("An index") is faiss
