"""Fingerprints: everything that changes keys and values changes them, nothing else does."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen2Config,
)

from vllm_relational.context import fingerprint
from vllm_relational.context.errors import ContextError, UnsupportedModelError
from vllm_relational.context.fingerprint import check_supported, fingerprint_of_folder, fingerprint_of_model

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip


def model(seed=0, dtype=torch.float32, **changed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changed})).to(dtype)


def test_equal_models_have_one_fingerprint():
    assert fingerprint_of_model(model()) == fingerprint_of_model(model())
    assert len(fingerprint_of_model(model())) == 32


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"dtype": torch.bfloat16},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        {"rms_norm_eps": 1e-3},
        {"head_dim": 4},
    ],
    ids=str,
)
def test_whatever_changes_keys_changes_it(other):
    assert fingerprint_of_model(model(**other)) != fingerprint_of_model(model())


def test_a_weight_that_changes_in_place_changes_it():
    given = model()
    before = fingerprint_of_model(given)
    with torch.no_grad():
        given.model.layers[1].self_attn.k_proj.weight[0, 0] += 1
    changed = fingerprint_of_model(given)
    given.model.layers[1].self_attn.k_proj.weight = torch.nn.Parameter(torch.zeros(8, 16))
    assert len({before, changed, fingerprint_of_model(given)}) == 3


def test_a_change_that_torch_does_not_count_changes_it():
    """As libraries merge adapters: through ``data``, which leaves version and address as they were."""
    given = model()
    weight = given.model.layers[1].mlp.up_proj.weight
    before, version = fingerprint_of_model(given), weight._version
    weight.data += 0.01
    assert weight._version == version and fingerprint_of_model(given) != before
    weight.data -= 0.01


class Adapted(torch.nn.Linear):
    """Looks like a layer of PEFT."""

    active_adapters, disable_adapters = ("a",), False

    def __init__(self, size):
        super().__init__(size, size)
        self.merged_adapters = []


def test_another_adapter_at_work_changes_it():
    given = model()
    torch.manual_seed(0)
    given.model.extra = Adapted(4)
    seen = [fingerprint_of_model(given)]
    given.model.extra.active_adapters = ("b",)
    seen.append(fingerprint_of_model(given))
    given.model.extra.disable_adapters = True
    seen.append(fingerprint_of_model(given))
    given.model.extra.scaling = {"b": 2.0}
    seen.append(fingerprint_of_model(given))
    given.model.extra.scaling["b"] = 1.0
    assert len({*seen, fingerprint_of_model(given)}) == 5


def test_what_is_no_matter_to_keys_does_not():
    given = model()
    given.config.pad_token_id, given.config.use_cache, given.config.architectures = 3, False, ["Other"]
    given.set_attn_implementation("eager")
    assert fingerprint_of_model(given) == fingerprint_of_model(model())


def test_weights_are_read_once(monkeypatch):
    given = model()
    first = fingerprint_of_model(given)
    monkeypatch.setattr(fingerprint, "_weights_of", lambda model: pytest.fail("read again"))
    assert fingerprint_of_model(given) == first


def test_weights_that_are_elsewhere_are_refused():
    with torch.device("meta"):
        offloaded = LlamaForCausalLM(LlamaConfig(**SIZES))
    with pytest.raises(UnsupportedModelError, match="offload"):
        fingerprint_of_model(offloaded)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "dynamic"),
        (LlamaConfig(rope_parameters={"rope_type": "su", "factor": 2.0, "rope_theta": 1e4}), "su"),
        (MistralConfig(sliding_window=64), "sliding"),
        (Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=2), "sliding"),
        (LlamaConfig(is_encoder_decoder=True), "encoder"),
        (LlamaConfig(**{"is_causal": False}), "behind them"),
        (Gemma3TextConfig(use_bidirectional_attention=True, layer_types=["full_attention"] * 26), "behind them"),
    ],
    ids=["dynamic rope", "su rope", "sliding window", "some layers slide", "encoder", "not causal", "bidirectional"],
)
def test_models_whose_keys_depend_on_more_are_refused(config, why):
    with pytest.raises(UnsupportedModelError, match=why):
        check_supported(config)


@pytest.mark.parametrize("is_decoder", [False, True])
def test_an_encoder_with_a_head_is_refused_unless_it_decodes(is_decoder):
    given = BertLMHeadModel(
        BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50, is_decoder=is_decoder)
    )
    with nullcontext() if is_decoder else pytest.raises(UnsupportedModelError, match="behind them"):
        fingerprint_of_model(given)


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(), MistralConfig(sliding_window=None), Qwen2Config(sliding_window=64, use_sliding_window=False)],
)
def test_others_are_not(config):
    check_supported(config)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 1e4, "_name_or_path": "a"}))
    (made / "model.safetensors").write_bytes(b"weights")
    return made


def test_a_folder_s_fingerprint_follows_config_weights_and_what_is_added(folder):
    seen = [fingerprint_of_folder(folder, "bfloat16"), fingerprint_of_folder(folder, "float16")]
    seen.append(fingerprint_of_folder(folder, "bfloat16", block_size=16))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 2e4}))
    seen.append(fingerprint_of_folder(folder, "bfloat16"))
    (folder / "model.safetensors").write_bytes(b"Weights!")
    seen.append(fingerprint_of_folder(folder, "bfloat16"))
    assert len(set(seen)) == 5


def test_a_folder_s_weights_are_read_once_for_all_processes(folder, monkeypatch):
    first = fingerprint_of_folder(folder, "bfloat16")
    monkeypatch.setattr(fingerprint, "_digest_of_file", lambda file: pytest.fail("read again"))
    assert fingerprint_of_folder(folder, "bfloat16") == first


def test_what_is_remembered_may_be_damaged(folder, tmp_path):
    first = fingerprint_of_folder(folder, "bfloat16")
    for content in ("", "[1]", '{"a": 5}'):
        (tmp_path / "cache" / "vllm-relational" / "weights.json").write_text(content)
        assert fingerprint_of_folder(folder, "bfloat16") == first


def test_a_folder_without_a_model_is_named(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    for path in (folder, tmp_path / "none"):
        with pytest.raises(ContextError, match=path.name):
            fingerprint_of_folder(path, "bfloat16")
