"""Which engines may read each other's pages."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from vllm_relational.context import vllm_layout
from vllm_relational.context.vllm_layout import facts_of, folder_of
from vllm_relational.records import RelationalError


@pytest.fixture(autouse=True)
def without_vllm(monkeypatch):
    monkeypatch.setattr(vllm_layout, "_version", lambda: "0.32.0")
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def engine(model, **changed):
    """A configuration as vLLM's; changed: ``PART_NAME=value``."""
    config = SimpleNamespace(
        model=SimpleNamespace(
            model=str(model),
            revision=None,
            dtype="torch.bfloat16",
            quantization=None,
            hf_overrides={},
            hf_text_config=SimpleNamespace(rope_parameters={"rope_type": "default"}),
            max_model_len=1024,
        ),
        cache=SimpleNamespace(cache_dtype="auto", kv_cache_layout="LBHNC", prefix_caching_hash_algo="sha256"),
        parallel=SimpleNamespace(
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
        ),
        attention=SimpleNamespace(backend=None),
        load=SimpleNamespace(load_format="auto"),
        additional=None,
        lora=None,
    )
    for name, value in changed.items():
        part, _, rest = name.partition("__")
        setattr(getattr(config, part), rest, value) if rest else setattr(config, part, value)
    return SimpleNamespace(**{f"{name}_config": part for name, part in vars(config).items()})


def group(**changed):
    spec = SimpleNamespace(**{"block_size": 16, "page_size_bytes": 4096, **changed})
    return SimpleNamespace(kv_cache_spec=spec, layer_names=["a", "b"])


def facts(model, groups=None, extra=None, **changed):
    return facts_of(engine(model, **changed), groups or [group()], extra or {})


def test_equal_engines_have_equal_facts_which_are_json(model):
    assert facts(model) == facts(model)
    assert json.loads(json.dumps(facts(model))) == facts(model)


@pytest.mark.parametrize(
    "changed",
    [
        {"model__dtype": "torch.float32"},
        {"model__quantization": "fp8"},
        {"model__hf_overrides": {"rope_theta": 5}},
        {"cache__cache_dtype": "fp8"},
        {"cache__kv_cache_layout": "LBNHC"},
        {"cache__prefix_caching_hash_algo": "sha256_cbor"},
        {"parallel__tensor_parallel_size": 2},
        {"attention__backend": "FLASH_ATTN"},
        {"attention__backend": SimpleNamespace(name="CUSTOM")},
        {"groups": [group(page_size_bytes=5120)]},
        {"groups": [group(block_size=32)]},
        {"groups": [group(), group()]},
        {"extra": {"weights": "of another file"}},
    ],
    ids=str,
)
def test_whatever_pages_depend_on_tells_engines_apart(model, changed):
    assert facts(model, **changed) != facts(model)


@pytest.mark.parametrize("kind, same", [("default", True), ("longrope", False), ("su", False), ("dynamic", False)])
def test_where_keys_depend_on_the_length_that_an_engine_allows_it_counts(model, kind, same):
    rope = {"model__hf_text_config": SimpleNamespace(rope_scaling={"rope_type": kind})}
    assert (facts(model, **rope, model__max_model_len=99) == facts(model, **rope)) is same


def test_another_model_under_the_same_name_is_another(model):
    before = facts(model)
    (model / "model.safetensors").write_bytes(b"WEIGHTS")
    assert facts(model) != before


def test_of_our_attention_the_settings_count(model):
    ours = {"attention__backend": "CUSTOM"}
    one = facts(model, **ours, additional={"relational": {"dipr": {"alpha": 0.01}}})
    other = facts(model, **ours, additional={"relational": {"dipr": {"alpha": 0.001}}})
    scheduled = facts(model, **ours, additional={"relational": {"dipr": {"alpha": 0.01}, "order": "arrival"}})
    assert one != other and one == scheduled


def test_a_seed_of_all_processes_tells_them_from_others(model, monkeypatch):
    before = facts(model)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert facts(model) != before
    assert facts(model, cache__prefix_caching_hash_algo="xxhash")["hashes"] == ["xxhash", "0"]


def test_names_that_differ_from_process_to_process_are_refused(model):
    with pytest.raises(RelationalError, match=r"xxhash have other names in every process: .*sha256"):
        facts(model, cache__prefix_caching_hash_algo="xxhash")


def test_weights_of_no_file_need_a_name(model):
    with pytest.raises(RelationalError, match="dummy weights cannot be told"):
        facts(model, load__load_format="dummy")
    assert facts(model, load__load_format="dummy", extra={"weights": "drawn"})["weights"] == "named drawn"


def test_adapters_are_refused(model):
    with pytest.raises(RelationalError, match="LoRA"):
        facts(model, lora=object())


def test_a_model_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RelationalError, match="in a folder: give its path"):
        folder_of("nobody/no-such-model", None)
