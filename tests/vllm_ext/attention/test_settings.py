"""The settings of the attention beside those of the scheduler."""

import pytest

from vllm_relational import RelationalLLM
from vllm_relational.records import RelationalError
from vllm_relational.sparse.settings import DiprSettings
from vllm_relational.vllm_ext.settings import (
    attention_arguments,
    engine_arguments,
    expected_block_size,
    read_attention,
    read_settings,
)


def test_both_live_side_by_side():
    config = {"relational": {"order": "arrival", "dipr": {"alpha": 0.001}}}
    assert read_settings(config).order == "arrival"
    assert read_attention(config) == DiprSettings(alpha=0.001)
    assert read_attention({"relational": {"order": "arrival"}}) == read_attention(None) == DiprSettings()


def test_an_unknown_name_is_told_from_the_known():
    with pytest.raises(RelationalError, match=r"no setting 'dirp': there are eviction, .*, dipr$"):
        read_settings({"relational": {"dirp": {}}})
    with pytest.raises(RelationalError, match="dipr setting recent is 0"):
        read_settings({"relational": {"dipr": {"recent": 0}}})


def test_arguments_of_an_engine():
    given = {"additional_config": {"other": 1, "relational": {"dipr": {"sinks": 64}}}}
    arguments = attention_arguments("dipr", {"alpha": 0}, given)
    assert arguments["attention_backend"] == "CUSTOM" and arguments["worker_cls"].endswith("worker.Worker")
    assert "worker_cls" not in attention_arguments("dipr", {}, {"worker_cls": "their.Worker"})
    assert arguments["additional_config"] == {"other": 1, "relational": {"dipr": {"sinks": 64, "alpha": 0}}}
    both = engine_arguments({"order": "arrival"}, {**given, **arguments})
    assert both["additional_config"]["relational"] == {"dipr": {"sinks": 64, "alpha": 0}, "order": "arrival"}
    assert attention_arguments(None, None, given) == {}


@pytest.mark.parametrize(
    ("dipr", "size"),
    [({}, 64), ({"approximate": True}, 16), ({"method": "topk_pages"}, 16), ({"method": "dense"}, None)],
)
def test_plans_know_the_size_of_blocks(dipr, size):
    assert expected_block_size(attention_arguments("dipr", dipr, {})) == size
    assert expected_block_size({"additional_config": {"relational": {"dipr": dipr}}}) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"attention": "dpir"}, "attention is 'dpir'"),
        ({"dipr": {"alpha": 0.1}}, "need the attention dipr"),
        ({"attention": "dipr", "attention_backend": "FLASH_ATTN"}, "exclude each other"),
        ({"attention": "dipr", "dipr": {"alpha": -1}}, "alpha is -1"),
    ],
)
def test_the_offline_class_refuses(arguments, message):
    llm = RelationalLLM("M", **arguments)
    with pytest.raises(RelationalError, match=message):
        _ = llm.engine
    llm.close()


def test_a_server_has_its_attention():
    with pytest.raises(RelationalError, match="serve MODEL --attention dipr"):
        RelationalLLM(base_url="http://localhost:1/v1", attention="dipr")
