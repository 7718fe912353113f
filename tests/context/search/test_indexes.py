"""Index files: what was written comes back and finds the same; whatever is damaged or of other keys is refused."""

import random

import numpy as np
import pytest
from search_keys import clustered_keys, query_heads, stored

from vllm_relational.context.errors import ContextError, DamagedContextError
from vllm_relational.context.search import indexes
from vllm_relational.context.search.indexes import KINDS, build, load, save

PLACE, FIELDS = indexes.ArrayPlace, ("name", "dtype", "shape", "offset")


def layer(count=300, head_size=64):
    return [stored(clustered_keys(count, head_size, seed), "bfloat16") for seed in (0, 1)]


def built(kind, keys):
    return [build(kind, each, query_heads(40, each.shape[1], 3)) for each in keys]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 300])
def test_what_was_written_comes_back(tmp_path, kind, count):
    keys, queries = layer(count), query_heads(7, 64)
    made = built(kind, keys)
    save(tmp_path / "index", made)
    for before, after in zip(made, load(tmp_path / "index", keys, kind), strict=True):
        assert (after.kind, after.nbytes, after.settings) == (kind, before.nbytes, before.settings)
        for search in (lambda index: index.dipr(queries, 15.0), lambda index: index.topk(queries, 4)):
            own, expected = search(after), search(before)
            assert own.tokens.tobytes() == expected.tokens.tobytes()
            assert own.scores.tobytes() == expected.scores.tobytes() and own.visited == expected.visited


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits_are_refused(tmp_path, kind):
    keys = layer(100, 32)
    save(tmp_path / "index", built(kind, keys))
    whole = (tmp_path / "index").read_bytes()
    draw = random.Random(1)
    for place in [*range(0, 40), *(draw.randrange(len(whole)) for _ in range(100))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        (tmp_path / "index").write_bytes(damaged)
        with pytest.raises(DamagedContextError, match="index is built again"):
            load(tmp_path / "index", keys, kind)


def test_files_that_are_cut_off_or_longer_are_refused(tmp_path):
    keys = layer(100, 32)
    save(tmp_path / "index", built("clusters", keys))
    whole = (tmp_path / "index").read_bytes()
    for size in (0, 7, 23, 24, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "index").write_bytes(whole[:size])
        with pytest.raises(DamagedContextError):
            load(tmp_path / "index", keys)
    (tmp_path / "index").write_bytes(whole + b"x")
    with pytest.raises(DamagedContextError):
        load(tmp_path / "index", keys)


def test_an_index_of_other_keys_is_refused(tmp_path):
    keys = layer()
    save(tmp_path / "index", built("int4", keys))
    others = keys[0].copy()
    others[150:] += 1
    for wrong, said in [
        ([keys[1], keys[0]], "other keys"),
        ([others, keys[1]], "other keys"),
        ([keys[0][:-1], keys[1]], "other keys"),
        ([keys[0].view(np.float16), keys[1]], "other keys"),
        (keys[:1], "2 KV heads, not None of 1"),
    ]:
        with pytest.raises(DamagedContextError, match=said):
            load(tmp_path / "index", wrong)
    with pytest.raises(DamagedContextError, match="is an index 'int4' of 2 KV heads, not 'graph'"):
        load(tmp_path / "index", keys, "graph")


def test_a_newer_format_and_arrays_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    keys = layer(100, 32)
    monkeypatch.setattr(indexes, "FORMAT", 2)
    save(tmp_path / "index", built("clusters", keys))
    monkeypatch.undo()
    with pytest.raises(DamagedContextError, match="format 2, where this version knows 1"):
        load(tmp_path / "index", keys)
    made = built("clusters", keys)
    made[0].arrays["tokens"] = made[0].arrays["tokens"] + 50
    save(tmp_path / "index", made)
    with pytest.raises(DamagedContextError, match="does not hold an index 'clusters'"):
        load(tmp_path / "index", keys)
    made = built("clusters", keys)
    del made[1].settings["share"]
    save(tmp_path / "index", made)
    with pytest.raises(DamagedContextError, match="does not hold an index 'clusters'"):
        load(tmp_path / "index", keys)
    del made[0].arrays["tokens"]
    save(tmp_path / "index", made)
    with pytest.raises(DamagedContextError, match="does not hold an index 'clusters'"):
        load(tmp_path / "index", keys)


@pytest.mark.parametrize(
    "wrong",
    [{"shape": [-1]}, {"shape": [10**12]}, {"offset": 10**15}, {"offset": -64}, {"dtype": "?x"}, {"dtype": "|O"}],
)
def test_a_sealed_header_that_makes_no_sense_is_refused(tmp_path, monkeypatch, wrong):
    keys = layer(100, 32)
    made = built("int4", keys)
    monkeypatch.setattr(indexes, "ArrayPlace", lambda *given: PLACE(**dict(zip(FIELDS, given, strict=True)) | wrong))
    save(tmp_path / "index", made)
    monkeypatch.undo()
    with pytest.raises(DamagedContextError, match="does not hold an index 'int4'"):
        load(tmp_path / "index", keys)


def test_kinds_that_there_are_not_and_mixed_files_are_refused(tmp_path):
    keys = layer(20)
    with pytest.raises(ContextError, match="no index of kind 'hnsw': there are flat, int4, clusters, graph"):
        build("hnsw", keys[0])
    with pytest.raises(ContextError, match="indexes of one kind, not"):
        save(tmp_path / "index", [build("flat", keys[0]), build("int4", keys[1])])
