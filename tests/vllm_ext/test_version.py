"""The vLLM that was tried, others that are allowed by name, and the refusal of the rest."""

from __future__ import annotations

import pytest

from vllm_relational import RelationalError
from vllm_relational.vllm_ext.version import ALLOW_VARIABLE, SUPPORTED, check_version, is_supported


@pytest.mark.parametrize("suffix", ["", "+cpu", "+cu129"])
def test_builds_of_the_same_release_are_supported(suffix):
    assert is_supported(SUPPORTED + suffix)
    check_version(SUPPORTED + suffix)


@pytest.mark.parametrize("found", ["0.31.0", f"{SUPPORTED}rc1", f"{SUPPORTED}.post1"])
def test_others_are_refused_unless_allowed_by_name(monkeypatch, found):
    with pytest.raises(RelationalError, match=rf"vLLM {SUPPORTED}.*{ALLOW_VARIABLE}={found}"):
        check_version(found)
    monkeypatch.setenv(ALLOW_VARIABLE, found)
    check_version(found)
    with pytest.raises(RelationalError):
        check_version(found + "0")
