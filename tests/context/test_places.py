"""Sizes in words, and where contexts are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_relational.context.errors import ContextError
from vllm_relational.context.places import bytes_of, default_folder, size_in_words


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("200GB", 200 * 10**9), ("1.5 GiB", 3 * 2**29), ("2t", 2 * 10**12), ("5 kb", 5000), ("7B", 7)],
)
def test_sizes(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 2", "1XB", "1iB", "many"])
def test_what_is_no_size(text):
    with pytest.raises(ContextError, match="200GB"):
        bytes_of(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.2 KB"), (201_496_965, "201 MB"), (75 * 10**9, "75 GB")]
)
def test_sizes_in_words(size, text):
    assert size_in_words(size) == text


def test_the_environment_names_the_folder(monkeypatch):
    monkeypatch.delenv("VLLM_RELATIONAL_CONTEXTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_folder() == Path("/cache/vllm-relational/contexts")
    monkeypatch.setenv("VLLM_RELATIONAL_CONTEXTS", "/data")
    assert default_folder() == Path("/data")
