"""Sessions without transformers: AlayaDB's update and attention, against attention over all keys written down."""

from __future__ import annotations

import copy
import gc
import shutil

import numpy as np
import pytest
import torch
from stored_contexts import StoredLayers, store_layers

from vllm_relational.context.errors import ContextError
from vllm_relational.context.search import SearchCosts
from vllm_relational.context.search.optimizer import WayCost
from vllm_relational.context.session import ContextSession
from vllm_relational.context.settings import SessionSettings
from vllm_relational.context.text import SessionMisuseError
from vllm_relational.context.torch_attention import causal_mask, plain

KV_HEADS, GROUP, SIZE, STORED, LAYERS = 2, 3, 16, 300, 2
SPLIT = SessionSettings(contiguous=False)


class PartlyNear(SessionSettings):
    """As on another device than the CPU: the middle of the stored tokens is not there."""

    def far(self, num_stored, on_cpu):
        return 20, max(20, num_stored - 60)


KINDS = {"mapped": None, "split": SPLIT, "partly near": PartlyNear(contiguous=False)}


class Given:
    """Random keys and values of a stored text and of tokens behind it."""

    def __init__(self, folder, dtype=torch.float32, seed=0) -> None:
        torch.manual_seed(seed)
        self.dtype = dtype
        self.keys, self.values = (
            torch.randn(LAYERS, KV_HEADS, STORED + 40, SIZE).to(dtype) * scale for scale in (2.0, 1.0)
        )
        self.query = torch.randn(KV_HEADS * GROUP, 40, SIZE).to(dtype)
        self.stored: StoredLayers = store_layers(
            folder, [(self.keys[layer, :, :STORED], self.values[layer, :, :STORED]) for layer in range(LAYERS)]
        )

    def session(self, num_stored: int = STORED, settings: SessionSettings | None = None) -> ContextSession:
        return ContextSession(self.stored, num_stored, np.arange(STORED + 5), dtype=self.dtype, settings=settings)

    def add(self, session: ContextSession, start: int, stop: int, layer: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of the text; their attention."""
        query = self.query[:, :: max(1, 40 // (stop - start))][:, : stop - start].contiguous()
        session.update(query, self.keys[layer, :, start:stop], self.values[layer, :, start:stop], layer)
        return session.attention(query, layer)

    def expected(self, start: int, stop: int, layer: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        query = self.query[:, :: max(1, 40 // (stop - start))][:, : stop - start]
        mask = causal_mask(stop - start, stop, query.device)
        added = None if mask is None else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        keys, values = (each[layer, :, :stop].float().repeat_interleave(GROUP, 0) for each in (self.keys, self.values))
        out, lse = plain(query.float()[None], keys[None], values[None], added, SIZE**-0.5)
        return out[0], lse[0]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return Given(tmp_path_factory.mktemp("session"))


def close(got, expected, within=1e-5):
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one.float(), other, atol=within)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("num_stored", [0, 1, 63, 299, 300])
def test_attention_to_stored_and_new_tokens(given, settings, num_stored):
    session = given.session(num_stored, settings)
    start = num_stored
    for count in (1, 7, 1, 15):
        close(given.add(session, start, start + count), given.expected(start, start + count))
        start += count
    assert (session.length(0), session.length(1)) == (start, num_stored)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_bfloat16(tmp_path, settings):
    given = Given(tmp_path, torch.bfloat16)
    session = given.session(settings=settings)
    close(given.add(session, 300, 310), given.expected(300, 310), within=0.02)
    close(given.add(session, 310, 311), given.expected(310, 311), within=0.02)


def test_all_keys_in_order(given):
    for settings in KINDS.values():
        session = given.session(200, settings)
        assert torch.equal(session.keys_values(1)[0][0], given.keys[1, :, :200])
        given.add(session, 200, 220, layer=1)
        keys, values = session.keys_values(1)
        assert torch.equal(keys[0], given.keys[1, :, :220]) and torch.equal(values[0], given.values[1, :, :220])


def test_ids_are_the_prompts_until_others_are_announced(given):
    session = given.session()
    given.add(session, 300, 304)
    assert session.ids.tolist() == list(range(304))
    assert session.remaining.ids.tolist() == [[304]]
    given.add(session, 304, 310)
    with pytest.raises(ContextError, match="holds 310 tokens and was told the ids of 305"):
        _ = session.ids
    session.crop(305)
    session.announce([7, 8])
    given.add(session, 305, 307)
    assert session.ids.tolist() == [*range(305), 7, 8]
    with pytest.raises(SessionMisuseError, match="token 301"):
        given.session().announce([300, 9])


def test_layers_of_different_length(given):
    session = given.session()
    given.add(session, 300, 303)
    given.add(session, 300, 301, layer=1)
    assert session.num_tokens == 301
    with pytest.raises(SessionMisuseError, match=r"301 to 303 tokens. Call session.crop\(301\)"):
        session.announce([301])
    session.crop(301)
    session.announce([301])


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_rows_go_their_own_ways(given, settings):
    session = given.session(settings=settings)
    given.add(session, 300, 305)
    session.select([0, 0, 0])
    keys, values = (each[0, None, :, 305:306].repeat(3, 1, 1, 1) for each in (given.keys, given.values))
    keys[1] *= 3
    session.update(None, keys, values, 0)
    query = given.query[None, :, :1].repeat(3, 1, 1, 1)
    out, lse = session.attention(query, 0)
    close((out[2], lse[2]), given.expected(305, 306))
    twin = copy.deepcopy(session)
    session.select([2, 0, 1])
    assert torch.equal(session.attention(query, 0)[0], out[[2, 0, 1]])
    session.select([2, 0])
    assert torch.equal(session.attention(query[:2], 0)[0], out[1:])
    assert torch.equal(twin.attention(query, 0)[0], out)
    assert not torch.equal(out[1], out[0])


def test_what_does_not_fit(given):
    session = given.session()
    keys = torch.zeros(KV_HEADS, 3, SIZE)
    for wrong in (torch.zeros(3, 3, SIZE), torch.zeros(KV_HEADS, 3, 8), keys.double(), keys.bfloat16()):
        with pytest.raises(ContextError, match="layer 0"):
            session.update(None, wrong, wrong, 0)
    with pytest.raises(ContextError, match="values"):
        session.update(None, keys, keys[:, :2], 0)
    with pytest.raises(ContextError, match="holds no tokens"):
        ContextSession(None, 0, [1], dtype=torch.float32).keys_values(0)
    assert session.num_tokens == STORED


@pytest.mark.slow
def test_keys_outlive_the_session_and_the_files(tmp_path):
    given = Given(tmp_path)
    session = given.session()
    given.add(session, 300, 301)
    keys, _ = session.keys_values(0)
    for file in given.stored.files:
        file.path.unlink()
    copied = copy.deepcopy(session)
    del session
    given.stored.files.clear()
    gc.collect()
    assert torch.equal(keys[0], given.keys[0, :, :301])
    assert torch.equal(copied.keys_values(0)[0][0], given.keys[0, :, :301])


# ------------------------------------------------------------------------------------------------------- searching
WINDOW = {"first": 20, "last": 60, "dense_below": 0, "dense_layers": 0}


def found_only(given, settings, position):
    """Attention of one token to the window, and to what is to be found in the body, written down."""
    query = given.query[:, :1].float()
    keys, values = (
        each[0, :, : position + 1].float().repeat_interleave(GROUP, 0) for each in (given.keys, given.values)
    )
    scores = (query @ keys.transpose(-1, -2))[:, 0]
    body = torch.zeros(position + 1, dtype=torch.bool)
    body[settings.first : STORED - settings.last] = True
    if settings.method == "dipr":
        kept = scores >= scores.amax(-1, keepdim=True) - settings.beta(SIZE**-0.5)
    else:
        order = scores.masked_fill(~body, -torch.inf).argsort(-1, descending=True)[:, : settings.top_tokens]
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, True)
    added = torch.zeros_like(scores).masked_fill(body & ~kept, -torch.inf)[None, :, None]
    out, lse = plain(query[None], keys[None], values[None], added, SIZE**-0.5)
    return (out[0], lse[0]), int((kept & body).sum())


@pytest.mark.parametrize("contiguous", [True, False], ids=["mapped", "split"])
@pytest.mark.parametrize(
    "how",
    [
        {"method": "dipr", "alpha": 0.05},
        {"method": "dipr", "alpha": 0.05, "index": "int4"},
        {"method": "topk", "top_tokens": 9},
    ],
    ids=str,
)
def test_attention_to_what_is_found(given, how, contiguous):
    settings = SessionSettings(**WINDOW, **how, contiguous=contiguous)
    session = given.session(settings=settings)
    given.add(session, 300, 303)
    got = given.add(session, 303, 304)
    expected, count = found_only(given, settings, 303)
    close(got, expected)
    assert session.counts.attended == count
    assert session.counts.tokens == KV_HEADS * GROUP * (STORED - 80)
    assert 0 < count < session.counts.tokens
    if "index" in how:
        assert count <= session.counts.visited <= session.counts.tokens
    else:  # a scan looks at every token, with every query head
        assert session.counts.visited == session.counts.tokens


@pytest.mark.parametrize("index", ["flat", "int4", "clusters", "graph"])
def test_every_index_with_everything_allowed_is_full_attention(given, index, monkeypatch):
    monkeypatch.setattr("vllm_relational.context.body.MIN_QUERIES", 1)
    settings = SessionSettings(**WINDOW, method="dipr", alpha=1e-30, index=index)
    session = given.session(settings=settings)
    given.add(session, 300, 303)
    close(given.add(session, 303, 304), given.expected(303, 304), within=0.05 if index == "graph" else 1e-5)


@pytest.mark.parametrize(
    ("costs", "kind", "searches"),
    [
        ({"full": 1e-3, "flat": 1e-9}, "flat", 1),
        ({"full": 1e-3, "flat": 1e9}, "full", 0),
        ({"full": 1e9, "graph": 1e-3}, "graph", 1),
    ],
    ids=["searching is cheap", "reading is", "a graph is"],
)
@pytest.mark.parametrize("queries_known", [True, False])
def test_the_optimizer_decides(tmp_path, monkeypatch, costs, kind, searches, queries_known):
    table = SearchCosts({name: WayCost(0, us) for name, us in costs.items()}, hit_us=0.0)
    monkeypatch.setattr("vllm_relational.context.body.costs", lambda: table)
    given = Given(tmp_path)
    session = given.session(settings=SessionSettings(**WINDOW, method="auto", alpha=1e-30))
    if queries_known:
        given.add(session, 300, 302)
    else:
        session.update(None, given.keys[0, :, 300:302], given.values[0, :, 300:302], 0)
    query, added = given.query[:, :1].contiguous(), (each[0, :, 302:303] for each in (given.keys, given.values))
    session.update(query if queries_known else None, *added, 0)
    out = session.attention(query, 0)
    close(out, given.expected(302, 303))  # exact: too little was asked for a graph
    assert session.counts.searches == searches
    assert session.plan(0).kind == kind


def test_an_index_is_kept_for_the_next_session(tmp_path):
    given = Given(tmp_path)
    settings = SessionSettings(**WINDOW, method="dipr", index="clusters")
    first, second = given.session(settings=settings), given.session(settings=settings)
    one = given.add(first, 300, 301)
    file = tmp_path / "index_clusters_00"
    written = file.stat().st_mtime_ns
    close(given.add(second, 300, 301), one)
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize("kind", ["int4", "clusters"])
def test_an_index_of_another_context_is_built_again(tmp_path, kind):
    """Copied in with its record, so that it fits its checksums."""
    settings = SessionSettings(**WINDOW, method="dipr", alpha=1e-30, index=kind)
    (tmp_path / "other").mkdir()
    given, other = Given(tmp_path), Given(tmp_path / "other", seed=5)
    other.add(other.session(settings=settings), 300, 301)
    for file in (tmp_path / "other").glob("index_*"):
        shutil.copy(file, tmp_path / file.name)
    close(given.add(given.session(settings=settings), 300, 301), given.expected(300, 301))


@pytest.mark.parametrize("method", ["dipr", "auto"])
def test_no_graph_is_built_of_a_few_queries(tmp_path, method, monkeypatch):
    """It would be kept, and miss half of what others ask."""
    table = SearchCosts({"full": WayCost(0, 1e9), "graph": WayCost(0, 1e-9)}, hit_us=0.0)
    monkeypatch.setattr("vllm_relational.context.body.costs", lambda: table)
    given = Given(tmp_path)
    session = given.session(settings=SessionSettings(**WINDOW, method=method, alpha=1e-30, index="graph"))
    close(given.add(session, 300, 301), given.expected(300, 301))
    assert session.counts.searches == 1 and not list(tmp_path.glob("index_graph*"))


@pytest.mark.parametrize(
    ("settings", "num_stored"),
    [
        ({"method": "dipr", "dense_layers": 1, "dense_below": 0}, 300),
        ({"method": "dipr", "dense_below": 400}, 300),
        ({"method": "dipr", "first": 200, "last": 200, "dense_below": 0}, 300),
        ({"method": "topk", "dense_below": 0}, 0),
    ],
    ids=str,
)
def test_when_all_is_read(given, settings, num_stored):
    session = given.session(num_stored, SessionSettings(**settings))
    given.add(session, num_stored, num_stored + 2)
    close(given.add(session, num_stored + 2, num_stored + 3), given.expected(num_stored + 2, num_stored + 3))
    assert session.counts.searches == 0
