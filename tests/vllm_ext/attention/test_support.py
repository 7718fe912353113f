"""Which models and layers DIPR attention takes, and what a page of the cache then holds."""

import logging
from types import SimpleNamespace

import pytest
import torch
from attention_objects import HEAD_SIZE, make_config, make_spec
from vllm.config import set_current_vllm_config
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode, SlidingWindowSpec

from vllm_relational import plugin
from vllm_relational.records import RelationalError
from vllm_relational.sparse.pages import PageLayout
from vllm_relational.vllm_ext.attention import gpu as attention_gpu
from vllm_relational.vllm_ext.attention import selector as attention
from vllm_relational.vllm_ext.attention.backend import layer_index
from vllm_relational.vllm_ext.attention.cpu import DiprCpuBackend
from vllm_relational.vllm_ext.attention.gpu import DiprFlashBackend, DiprTritonBackend
from vllm_relational.vllm_ext.attention.support import unsupported_layer, unsupported_model

BACKENDS = [DiprCpuBackend, DiprFlashBackend, DiprTritonBackend]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_page_holds_keys_values_and_the_index(backend, dtype):
    spec = backend.customize_spec(make_spec(dtype))
    stock = make_spec(dtype)
    index = PageLayout(spec.block_size, HEAD_SIZE, dtype).index_bytes
    assert index > 0
    assert spec.page_size_bytes == stock.page_size_bytes + spec.num_kv_heads * spec.block_size * index
    assert backend.customize_spec(spec) == spec
    assert [layout.name for layout in backend.supported_kv_cache_layouts()] == ["LBHNC"]


@pytest.mark.parametrize(
    "spec",
    [
        make_spec(kv_quant_mode=KVQuantMode.FP8_PER_TENSOR),
        make_spec(sliding_window=64),
        make_spec(attention_chunk_size=64),
        make_spec(head_size_v=16),
        FullAttentionSpec(block_size=32, num_kv_heads=1, head_size=12, dtype=torch.float32),
        SlidingWindowSpec(block_size=32, num_kv_heads=1, head_size=32, dtype=torch.float32, sliding_window=64),
    ],
)
def test_other_layers_keep_their_page(spec):
    assert DiprFlashBackend.customize_spec(spec) == spec


@pytest.mark.parametrize(
    "more, reason",
    [
        ({}, None),
        ({"sliding_window": 128, "model_type": "mistral"}, "sliding window"),
        ({"head_dim": 12}, "head size"),
    ],
)
def test_models(more, reason):
    found = unsupported_model(make_config(**more))
    assert found is None if reason is None else reason in found


def test_quantised_caches_and_context_parallelism_stay_dense():
    config = make_config()
    config.cache_config.cache_dtype = "fp8"
    assert unsupported_model(config) == "keys and values are stored as fp8"
    config = make_config()
    config.parallel_config.decode_context_parallel_size = 2
    assert unsupported_model(config) == "context parallelism is at work"
    config = make_config()
    config.parallel_config.enable_dbo = True
    assert "dual batch overlap" in unsupported_model(config)
    config = make_config()
    config.cache_config.block_size = 24
    assert "multiple of 16 tokens, not 24" in unsupported_model(config)


def plain_layer(**more):
    fields = {"attn_type": "decoder", "alibi_slopes": None, "sliding_window": (-1, -1), "logits_soft_cap": 0}
    shape = {"num_heads": 32, "num_kv_heads": 2}
    return SimpleNamespace(**{**fields, **shape, "sinks": None, "kv_sharing_target_layer_name": None, **more})


@pytest.mark.parametrize(
    "more",
    [
        {"attn_type": "encoder_only"},
        {"num_heads": 34},
        {"alibi_slopes": [0.5]},
        {"sliding_window": (127, 0)},
        {"logits_soft_cap": 30.0},
        {"sinks": torch.zeros(4)},
        {"kv_sharing_target_layer_name": "model.layers.0.self_attn.attn"},
    ],
)
def test_layers_with_more_than_plain_attention_stay_dense(more):
    assert unsupported_layer(plain_layer()) is None and unsupported_layer(plain_layer(sliding_window=-1)) is None
    assert unsupported_layer(plain_layer(**more)) is not None


def test_layer_numbers():
    assert layer_index("model.layers.12.self_attn.attn") == 12
    assert layer_index("model.decoder.layers.7") == 7
    assert layer_index("attn") == 0


# --------------------------------------------------------------------------------------------- which class vLLM gets
@pytest.fixture
def registered():
    plugin._registered = False
    for member in (AttentionBackendEnum.CUSTOM, AttentionBackendEnum.CPU_ATTN):
        member.clear_override()
    plugin.register()
    yield
    for member in (AttentionBackendEnum.CUSTOM, AttentionBackendEnum.CPU_ATTN):
        member.clear_override()


def class_of(member, config):
    with set_current_vllm_config(config):
        return member.get_class()


def test_an_engine_that_does_not_ask_gets_vllms_own(registered):
    assert AttentionBackendEnum.CPU_ATTN.get_class() is CPUAttentionBackend  # outside of any engine
    assert class_of(AttentionBackendEnum.CPU_ATTN, make_config(asked=False)) is CPUAttentionBackend


def test_an_engine_that_asks_gets_ours(registered, monkeypatch):
    assert class_of(AttentionBackendEnum.CPU_ATTN, make_config()) is DiprCpuBackend
    monkeypatch.setattr(attention_gpu, "flash_attention_runs", lambda dtype: True)
    assert class_of(AttentionBackendEnum.CUSTOM, make_config()) is DiprFlashBackend
    monkeypatch.setattr(attention_gpu, "flash_attention_runs", lambda dtype: False)
    assert class_of(AttentionBackendEnum.CUSTOM, make_config()) is DiprTritonBackend


def test_names_are_those_of_the_registry():
    assert DiprCpuBackend.get_name() == AttentionBackendEnum.CPU_ATTN.name
    assert {DiprFlashBackend.get_name(), DiprTritonBackend.get_name()} == {AttentionBackendEnum.CUSTOM.name}


def test_another_plugins_backend_stays(registered):
    from vllm.v1.attention.backends.registry import register_backend

    register_backend(AttentionBackendEnum.CUSTOM, "other.Backend")
    plugin._registered = False
    plugin.register()
    assert AttentionBackendEnum.CUSTOM.get_path() == "other.Backend"


@pytest.mark.parametrize(
    "dipr, more", [({"method": "dense"}, {}), ({}, {"sliding_window": 64, "model_type": "mistral"})]
)
def test_models_that_do_not_fit_are_dense_with_one_line(registered, monkeypatch, dipr, more, caplog):
    monkeypatch.setattr(attention_gpu, "flash_attention_runs", lambda dtype: True)
    monkeypatch.setattr(attention.logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    config = make_config(dipr, **more)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert class_of(AttentionBackendEnum.CPU_ATTN, config) is CPUAttentionBackend
            assert class_of(AttentionBackendEnum.CUSTOM, config) is FlashAttentionBackend
    lines = [record for record in caplog.records if "DIPR attention is off" in record.getMessage()]
    assert len(lines) == 1
    monkeypatch.setattr(attention_gpu, "flash_attention_runs", lambda dtype: False)
    assert class_of(AttentionBackendEnum.CUSTOM, config) is TritonAttentionBackend


def test_wrong_settings_are_refused(registered):
    with pytest.raises(RelationalError, match="dipr has no setting 'alhpa': there are method, alpha"):
        class_of(AttentionBackendEnum.CPU_ATTN, make_config({"alhpa": 0.1}))


def test_another_vllm_keeps_its_attention(registered, monkeypatch):
    monkeypatch.setattr(attention.vllm, "__version__", "0.33.0")
    with pytest.raises(RelationalError, match="is installed"):
        attention.is_wanted(make_config())
    monkeypatch.setenv("VLLM_RELATIONAL_ALLOW_VLLM", "0.33.0")
    assert not attention.is_wanted(make_config())
