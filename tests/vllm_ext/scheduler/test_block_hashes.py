"""The layout of a block's hash is vLLM's, here and in C++."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from vllm.v1.core.kv_cache_utils import BlockHash, make_block_hash_with_group_id

from vllm_relational.vllm_ext.scheduler.block_hashes import GROUP_BYTES

BINDINGS = Path(__file__).parents[3] / "csrc/python/scheduler_bindings.cc"


@pytest.mark.parametrize("group", [0, 1, 255, 2**31])
def test_the_group_stands_behind_the_hash(group):
    block_hash = BlockHash(bytes(range(32)))
    whole = make_block_hash_with_group_id(block_hash, group)
    assert whole[:-GROUP_BYTES] == block_hash and len(whole) == len(block_hash) + GROUP_BYTES


def test_native_code_has_the_same_layout():
    (size,) = re.findall(r"kGroupBytes = (\d+)", BINDINGS.read_text(encoding="utf-8"))
    assert int(size) == GROUP_BYTES
