"""Builders and layers over fake batches: the CPU backend as it is, FlashAttention's with its kernels replaced."""

from __future__ import annotations

import pytest
import torch
from attention_objects import (
    BLOCK_SIZE,
    EXACT,
    HEAD_SIZE,
    HEADS,
    KV_HEADS,
    LAYER,
    MIXED,
    Batch,
    Request,
    make_config,
    make_spec,
)
from vllm.config import set_current_vllm_config
from vllm.v1.attention.backends import flash_attn
from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder

from vllm_relational.sparse import codec, naive
from vllm_relational.sparse.decoder import SparseDecoder
from vllm_relational.sparse.settings import beta_of
from vllm_relational.vllm_ext.attention import prompt_lengths
from vllm_relational.vllm_ext.attention.backend import DiprBuilder
from vllm_relational.vllm_ext.attention.cpu import DiprCpuBackend, causal_attention
from vllm_relational.vllm_ext.attention.gpu import DiprFlashBackend, DiprTritonBackend

SCALE = HEAD_SIZE**-0.5
SETTINGS = {"alpha": 0.3, "sinks": 16, "recent": 32, "dense_below": 100, "dense_layers": 2}


@pytest.fixture
def flash(monkeypatch):
    """FlashAttention 3 in plain torch, behind the same arguments."""
    calls = []

    def attend(*, q, k, v, out, cu_seqlens_q, seqused_k, block_table, softmax_scale, causal, **others):
        calls.append({"seqused_k": seqused_k.clone(), **others})
        assert causal and others["num_splits"] == 0 and others["window_size"] == [-1, -1]
        assert torch.equal(others["scheduler_metadata"], seqused_k + 1)
        for row, length in enumerate(seqused_k.tolist()):
            start, end = cu_seqlens_q[row : row + 2].tolist()
            out[start:end] = 0
            if length and end > start:
                found = [naive.gather(part.transpose(1, 2), block_table[row], length) for part in (k, v)]
                out[start:end] = causal_attention(q[start:end], *found, softmax_scale)

    def store(key, value, key_cache, value_cache, slots, *_):
        for part, cache in ((key, key_cache), (value, value_cache)):
            cache[slots // BLOCK_SIZE, slots % BLOCK_SIZE] = part

    monkeypatch.setattr(flash_attn, "get_flash_attn_version", lambda **_: 3)
    monkeypatch.setattr(flash_attn, "_FA4_DENSE_ATTENTION_KERNEL", attend)
    monkeypatch.setattr(flash_attn, "reshape_and_cache_flash", store, raising=False)
    monkeypatch.setattr(flash_attn, "get_scheduler_metadata", lambda **given: given["cache_seqlens"] + 1, raising=False)
    monkeypatch.setattr(flash_attn, "flash_attn_supports_quant_query_input", lambda: False)
    monkeypatch.setattr("vllm_relational.sparse.kernels.write.write", codec.write)
    return calls


def make_layer(backend, dipr):
    with set_current_vllm_config(make_config(dipr)) as _:
        return backend.get_impl_cls()(HEADS, HEAD_SIZE, SCALE, KV_HEADS, None, None, "auto")


def make_builder(backend, dipr, runner=None, **config):
    vllm_config = make_config(dipr, **config)
    if runner is not None:
        prompt_lengths.follow(vllm_config, runner)
    spec = backend.customize_spec(make_spec())
    with set_current_vllm_config(vllm_config):
        return backend.get_builder_cls()(spec, [], vllm_config, torch.device("cpu"))


def run(backend, dipr, batch, runner=None):
    """One step of one layer, as vLLM does it."""
    layer, metadata = make_layer(backend, dipr), make_builder(backend, dipr, runner).build(0, batch.common())
    layer.do_kv_cache_update(batch.layer(), batch.key, batch.value, batch.cache, batch.slots)
    output = torch.full_like(batch.query, torch.nan)
    layer.forward(batch.layer(), batch.query, batch.key, batch.value, batch.cache, metadata, output)
    return output


@pytest.mark.parametrize("backend", [DiprCpuBackend, DiprFlashBackend])
@pytest.mark.parametrize("requests", [MIXED, MIXED[:1], [MIXED[1], MIXED[4]], [MIXED[2]]])
def test_every_request_gets_its_attention(backend, requests, flash):
    batch = Batch(requests)
    found = run(backend, SETTINGS, batch)
    sparse = [row for row, request in enumerate(requests) if request in (MIXED[0], MIXED[5])]
    rule = naive.Dipr(beta_of(SETTINGS["alpha"], SCALE))
    wanted = batch.expected(SCALE, rule, naive.Window(16, 32, 32), sparse)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    dense = batch.expected(SCALE, rule, naive.Window(16, 32, 32), [])
    assert not sparse or (found - dense).abs().max() > 1e-3  # the rule does leave tokens out


REPLAYED = [
    Request(25, 300, prefilling=True, prompt_len=290),  # the end of a prompt, then 10 tokens of its answer again
    Request(1, 170, prompt_len=150),
    Request(1, 260, prefilling=True, prompt_len=250),  # one token of the answer again
    Request(120, 130, prefilling=True, prompt_len=80),  # 50, of which 20 have short contexts
    Request(40, 200, prefilling=True, prompt_len=500),
    Request(6, 140, prompt_len=120),
]


@pytest.mark.parametrize("size", [4, 1000])
@pytest.mark.parametrize("backend", [DiprCpuBackend, DiprFlashBackend])
def test_answers_that_are_computed_again_are_sparse_again(backend, size, flash, no_runner, monkeypatch):
    batch = Batch(REPLAYED, seed=3)
    monkeypatch.setattr(SparseDecoder, "max_requests", lambda self, longest: size)
    runner = batch.runner()
    found = run(backend, SETTINGS, batch, runner)
    rule = naive.Dipr(beta_of(SETTINGS["alpha"], SCALE))
    wanted = batch.expected(SCALE, rule, naive.Window(16, 32, 32), [0, 1, 2, 3, 5])
    dense = batch.expected(SCALE, rule, naive.Window(16, 32, 32), [])
    first = int(batch.query_start_loc[3]) + 80 - 10  # the answer of request 3, dense until its context has 100 tokens
    wanted[first : first + 19] = dense[first : first + 19]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (found - dense)[15:25].abs().max() > 1e-3


def test_drafted_tokens_are_no_answer_computed_again(flash, no_runner):
    batch = Batch([Request(6, 140, prompt_len=120)])
    runner = batch.runner()
    builder = make_builder(DiprFlashBackend, SETTINGS, runner)
    assert builder.build(0, batch.common()).dipr.recompute is not None
    builder._may_recompute = False
    assert builder.build(0, batch.common()).dipr.recompute is None


@pytest.mark.parametrize("backend", [DiprCpuBackend, DiprFlashBackend])
def test_alpha_0_is_dense_attention(backend, flash):
    batch = Batch(MIXED, seed=1)
    found = run(backend, EXACT, batch)  # writes this step's keys, so first
    wanted = batch.expected(SCALE, naive.Dense(), naive.Window(), [])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", [DiprCpuBackend, DiprFlashBackend])
def test_the_first_layers_are_dense(backend, flash):
    batch = Batch(MIXED, seed=2)
    found = run(backend, {**SETTINGS, "dense_layers": 4}, batch)
    wanted = batch.expected(SCALE, naive.Dense(), naive.Window(), [])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", [DiprCpuBackend, DiprFlashBackend])
def test_written_groups_are_sealed_and_no_others(backend, flash):
    batch = Batch([Request(40, 170), Request(1, 160), Request(1, 159)])
    before = as_bytes(batch).clone()
    run(backend, SETTINGS, batch)
    wanted = Batch(batch.requests)  # the same numbers
    assert torch.equal(as_bytes(wanted), before)
    codec.write(wanted.pages, wanted.key, wanted.value, wanted.slots)
    assert torch.equal(as_bytes(batch), as_bytes(wanted)) and not torch.equal(as_bytes(batch), before)


def as_bytes(batch):
    return batch.cache.view(torch.uint8)


def test_nothing_sparse_is_launched_where_nothing_can_be(flash, monkeypatch):
    monkeypatch.setattr(SparseDecoder, "decode", lambda *_: pytest.fail("launched"))
    for requests in ([MIXED[1]], [MIXED[2]], [MIXED[3], MIXED[1]]):
        run(DiprFlashBackend, SETTINGS, Batch(requests))
    assert [len(call["seqused_k"]) for call in flash] == [1, 1, 2]
    with pytest.raises(pytest.fail.Exception):
        run(DiprFlashBackend, SETTINGS, Batch(MIXED))


def test_flash_attention_reads_dense_requests_only(flash):
    run(DiprFlashBackend, SETTINGS, Batch(MIXED))
    assert flash[-1]["seqused_k"].tolist() == [0, 170, 90, 260, 257, 0, 0]


def test_flash_attention_is_left_out_where_every_request_is_sparse(flash):
    long = Batch([Request(1, 170), Request(1, 260), Request(0, 0)])
    found = run(DiprFlashBackend, {**SETTINGS, "alpha": 0}, long)
    assert not flash
    wanted = long.expected(SCALE, naive.Dense(), naive.Window(), [])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    run(DiprFlashBackend, {**SETTINGS, "dense_layers": 9}, long)
    assert [call["seqused_k"].tolist() for call in flash] == [[170, 260, 0]]


def test_a_layer_without_index_is_vllms(flash):
    """As for a sliding window beside full attention."""
    batch, plain = Batch(MIXED), Batch(MIXED)
    cache = plain.pages.key_value.contiguous()
    layer, builder = make_layer(DiprFlashBackend, SETTINGS), make_builder(DiprFlashBackend, SETTINGS)
    output = torch.empty_like(batch.query)
    layer.do_kv_cache_update(plain.layer(), plain.key, plain.value, cache, plain.slots)
    layer.forward(plain.layer(), plain.query, plain.key, plain.value, cache, builder.build(0, plain.common()), output)
    run(DiprFlashBackend, {**SETTINGS, "dense_layers": 9}, batch)
    wanted = batch.expected(SCALE, naive.Dense(), naive.Window(), [])
    torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------- builders
def test_every_capture_may_be_replayed_with_sparse_requests():
    builder = make_builder(DiprCpuBackend, {**SETTINGS, "dense_below": 4096})
    batch = Batch([Request(1, 5)] * 2)
    assert not builder.build(0, batch.common()).dipr.some
    assert builder.build_for_cudagraph_capture(batch.common()).dipr.some
    builder = make_builder(DiprCpuBackend, {**SETTINGS, "dense_below": 4097})  # the model has 4,096 positions
    assert not builder.build_for_cudagraph_capture(batch.common()).dipr.some


def test_a_captured_draft_step_refreshes_what_it_points_to(flash):
    builder = make_builder(DiprFlashBackend, SETTINGS)
    batch = Batch([Request(1, 300), Request(1, 90)])
    metadata = builder.build(0, batch.common())
    dense, sparse = metadata.dipr.dense.seq_lens, metadata.dipr.sparse_lens
    assert (dense.tolist(), sparse.tolist()) == ([0, 90], [300, 0])
    batch.seq_lens += 50
    builder.update_draft_decode_metadata(metadata)
    assert (dense.tolist(), sparse.tolist()) == ([0, 0], [350, 140])


def test_flash_attention_plans_dense_requests_apart(flash, monkeypatch):
    """The plan of a captured graph lies in one buffer a builder; ours is another, zeroed behind the plan."""
    planned = []

    def plan(**arguments):
        planned.append(arguments)
        return arguments["cache_seqlens"] + 1

    monkeypatch.setattr(flash_attn, "get_scheduler_metadata", plan, raising=False)
    builder = make_builder(DiprFlashBackend, SETTINGS)
    builder.aot_schedule = builder.use_full_cuda_graph = True
    builder.max_cudagraph_size, builder.max_num_splits = 512, 32
    builder.scheduler_metadata, builder._dense_schedule = torch.full((2, 9), 7, dtype=torch.int32)
    metadata = builder.build(0, Batch([Request(1, 300), Request(1, 90)]).common())

    assert metadata.scheduler_metadata.tolist() == [301, 91]
    assert metadata.dipr.dense.scheduler_metadata.tolist() == [1, 91]
    assert builder._dense_schedule.tolist() == [1, 91] + [0] * 7
    whole, dense = planned
    assert whole.pop("cache_seqlens") is not dense.pop("cache_seqlens")
    assert {k: v for k, v in whole.items() if k != "cu_seqlens_q"} == {
        k: v for k, v in dense.items() if k != "cu_seqlens_q"
    }
    assert whole["num_splits"] == 32


def test_blocks_have_room_for_large_groups_unless_the_user_says_otherwise(flash):
    assert [DiprFlashBackend.get_preferred_block_size(size) for size in (16, 64, 128)] == [64, 64, 128]
    with set_current_vllm_config(make_config({"method": "topk_pages"})):
        assert DiprFlashBackend.get_preferred_block_size(16) == 16
    config = make_config(SETTINGS)
    for size, chosen, group in ((32, True, 32), (16, False, 64), (128, True, 64)):
        config.cache_config.block_size, config.cache_config.user_specified_block_size = size, chosen
        with set_current_vllm_config(config):
            layer = DiprFlashBackend.get_impl_cls()(HEADS, HEAD_SIZE, SCALE, KV_HEADS, None, None, "auto")
        assert layer.decoder.shape.group == group


def test_blocks_of_a_size_that_was_not_expected_work(flash):
    batch = Batch(MIXED)
    config = make_config(SETTINGS)
    config.cache_config.user_specified_block_size = False
    with set_current_vllm_config(config):
        layer = DiprFlashBackend.get_impl_cls()(HEADS, HEAD_SIZE, SCALE, KV_HEADS, None, None, "auto")
    assert layer.decoder.shape.group == 64 and layer.pages(batch.cache).layout.group == 32
    assert layer.decoder.shape.group == 32


@pytest.mark.parametrize("backend", [DiprFlashBackend, DiprTritonBackend])
def test_builders_for_graphs(backend):
    builder = backend.get_builder_cls()
    assert issubclass(builder, DiprBuilder) and not builder.supports_update_block_table
    assert builder.get_cudagraph_support(None, None).name == "UNIFORM_BATCH"
    assert not issubclass(builder, CPUAttentionMetadataBuilder)


def test_layers_of_one_engine_share_a_decoder(flash):
    config, other = make_config(SETTINGS), make_config(SETTINGS)

    def layer(config):
        with set_current_vllm_config(config):
            return DiprFlashBackend.get_impl_cls()(HEADS, HEAD_SIZE, SCALE, KV_HEADS, None, None, "auto")

    first, second, third = layer(config), layer(config), layer(other)
    assert first.decoder is second.decoder and first.decoder is not third.decoder
    assert first.decoder.shape.max_reqs == 16 and first.decoder.shape.max_seq_len == 4096
    assert LAYER.endswith("attn")
