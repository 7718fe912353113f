"""Benchmark contexts of the Llama shape: scores are the model's, lengths and shares are those asked for."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))
import dipr_data

LENGTH, QUERIES = 1100, 4


@pytest.fixture
def dump():
    """Two stretches of a model with 2 KV heads of 64 channels and 10 query heads, 2 layers."""
    random = torch.Generator().manual_seed(0)

    def layer():
        sizes = {"query": (10, QUERIES, 64), "key": (2, LENGTH, 64), "value": (2, LENGTH, 64)}
        return {name: torch.randn(size, generator=random).bfloat16() for name, size in sizes.items()}

    stretches = [{"seq_len": LENGTH, "scale": 1 / 8, "layers": {3: layer(), 9: layer()}} for _ in range(2)]
    return dipr_data.Dump({"rope_theta": 1e4, "stretches": stretches}, "cpu")


def test_rotation_moves_keys():
    random = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 64, generator=random)
    here = [dipr_data.rotated(each, 700, 1e4) for each in (query, key)]
    there = [dipr_data.rotated(each, 30, 1e4) for each in (query, key)]
    assert (here[0] @ here[1]).item() == pytest.approx((there[0] @ there[1]).item(), abs=1e-3)
    torch.testing.assert_close(dipr_data.rotated(dipr_data.rotated(key, 5, 1e4), -5, 1e4), key)


def test_logits_are_the_models(dump):
    context = dump.context(LENGTH - 1, 1, repeats=5)
    layer = dump.stretches[0]["layers"][3]
    at = int(torch.randint(QUERIES, (), generator=torch.Generator().manual_seed(0)))
    end = LENGTH - at
    right = layer["query"][:5, QUERIES - 1 - at].float() @ layer["key"][0, end - 900 : end].float().T / 8
    found = context.query[0, :5].float() @ context.key[0, 0, -900:].float().T * dipr_data.SCALE
    torch.testing.assert_close(found, right, atol=0.02, rtol=0.01)


def test_long_contexts_go_on_in_other_stretches_without_their_sinks(dump):
    _, key, value = dump.head(0, (3, 1), 1, 2500)
    first, second = (stretch["layers"][3]["value"][1] for stretch in dump.stretches)
    own, other = LENGTH - 1 - 128, LENGTH - 128
    older = 2500 - 128 - own - other
    assert torch.equal(value, torch.cat([first[:128], first[-older:], second[128:], first[128:-1]]))
    # the second stretch's last key stands one position before the first's 129th, whatever it was
    before = dump.stretches[1]["layers"][3]["key"][1, -1]
    moved = dipr_data.rotated(before, 127 - (LENGTH - 1), 1e4)
    torch.testing.assert_close(key[-own - 1], moved, atol=0.02, rtol=0.02)


def test_shapes_and_seed(dump):
    context = dump.context(700, 3)
    assert context.query.shape == (3, 32, 128) and context.key.shape == context.value.shape == (3, 8, 700, 128)
    assert all(torch.equal(*pair) for pair in zip(context, dump.context(700, 3), strict=True))
    dump.combine = "pairs"
    assert not torch.equal(dump.context(700, 3).key[..., :64], dump.context(700, 3).key[..., 64:])


@pytest.mark.slow
def test_calibration_reaches_the_union_of_all_heads(dump):
    dump.calibrate(2)
    made = dipr_data.shares(dump.context(LENGTH - QUERIES, 2))
    assert made.union == pytest.approx(dump.measured(2).union, rel=0.1)


@pytest.mark.slow
def test_random_contexts_have_the_shares_asked_for():
    source = dipr_data.Synthetic("cpu", union_32k=0.01)
    source.calibrate(2048)
    found = dipr_data.shares(source.context(2048, 1, seed=5))
    assert found.union == pytest.approx(source.union(2048), rel=0.1)
    assert found.candidates == pytest.approx(2.2 * found.union, rel=0.25)
    assert 0 < found.own < found.union and math.isclose(source.union(2048), 0.16)
