"""Text -> tokens: frames know special tokens, cells never do."""

from __future__ import annotations

import json

import pytest

from vllm_relational.prompts import FourByteEstimate, ModelTokenizer, load_tokenizer
from vllm_relational.records import RelationalError


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(str(tokenizer_folder))


@pytest.fixture
def hf(tokenizer_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


def test_the_chat_template_surrounds_the_row(tokenizer):
    head, tail = tokenizer.chat_frame("Be brief.", "Q\n{\n", "}")
    assert head == "<|system|>\nBe brief.<|end|>\n<|user|>\nQ\n{\n"
    assert tail == "}<|end|>\n<|assistant|>\n"


def test_no_system_prompt_sends_no_system_message(tokenizer):
    assert tokenizer.chat_frame("", "Q", "}")[0] == "<|user|>\nQ"


def test_a_template_without_system_role_gets_it_in_the_first_user_message(hf):
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    hf.chat_template = refuse + hf.chat_template
    head, _ = ModelTokenizer(hf).chat_frame("Be brief.", "Q\n{\n", "}")
    assert head == "<|user|>\nBe brief.\n\nQ\n{\n"


def test_a_base_model_without_template_gets_plain_text(hf):
    hf.chat_template = None
    tokenizer = ModelTokenizer(hf)
    assert tokenizer.chat_frame("Be brief.", "Q\n{\n", "}") == ("Be brief.\n\nQ\n{\n", "}\nAnswer:\n")
    assert tokenizer.chat_frame("", "Q\n{\n", "}")[0] == "Q\n{\n"


def test_a_template_that_drops_the_user_is_refused(hf):
    hf.chat_template = "hello"
    with pytest.raises(RelationalError, match="chat template"):
        ModelTokenizer(hf).chat_frame("", "Q", "}")


def test_markers_are_special_in_the_frame_and_text_in_cells(tokenizer, hf):
    marker = hf.convert_tokens_to_ids("<|end|>")
    assert marker in tokenizer.encode_frame("x<|end|>\n", starts_prompt=True)
    cells = tokenizer.encode_cells(["x<|end|>\n", "<|assistant|>"])
    assert not set(cells.tokens.tolist()) & set(hf.all_special_ids)
    assert hf.decode(cells.tokens.tolist()) == "x<|end|>\n<|assistant|>"


def test_added_markers_are_text_in_cells_too_and_added_spaces_stay_tokens(hf):
    hf.add_tokens(["<think>", "\n\n\n"])
    think, spaces = hf.convert_tokens_to_ids(["<think>", "\n\n\n"])
    ids = ModelTokenizer(hf).encode_cells(["a<think>b\n\n\n"]).tokens.tolist()
    assert think not in ids and spaces in ids
    assert hf.decode(ids) == "a<think>b\n\n\n"


def test_cells_stand_end_to_end(tokenizer, hf):
    texts = ["one", "", "two,\n", "ü😀"]
    cells = tokenizer.encode_cells(iter(texts))
    pieces = [cells.tokens[a:b].tolist() for a, b in zip(cells.offsets, cells.offsets[1:], strict=False)]
    assert [hf.decode(ids) for ids in pieces] == texts
    assert cells.lengths.tolist() == [len(ids) for ids in pieces]


def test_no_cells(tokenizer):
    assert tokenizer.encode_cells([]).offsets.tolist() == [0]


def test_more_cells_than_one_batch(tokenizer):
    assert len(tokenizer.encode_cells(f"{i}" for i in range(10_000)).lengths) == 10_000


def test_four_bytes_count_as_one_token():
    estimate = FourByteEstimate()
    assert estimate.encode_cells(["", "abc", "abcd", "abcde", "üü"]).lengths.tolist() == [0, 1, 1, 2, 1]
    assert estimate.counts != "exact"


def test_estimates_share_a_prefix_where_texts_do():
    short, long = (FourByteEstimate().encode_frame(text, True) for text in ("abcdefgh", "abcdefghijkl"))
    assert long[:2].tolist() == short.tolist()


# --------------------------------------------------------------------------------------------------------- errors
def load_error(model: str) -> str:
    with pytest.raises(RelationalError) as caught:
        load_tokenizer(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_model(tmp_path):
    assert "it has no config.json" in load_error(str(tmp_path))


def test_a_folder_without_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "cannot load the tokenizer" in load_error(str(tmp_path))


def test_a_file(tmp_path):
    (tmp_path / "model.gguf").write_text("x")
    assert "is a file" in load_error(str(tmp_path / "model.gguf"))


def test_a_path_that_does_not_exist(tmp_path):
    assert "does not exist" in load_error(str(tmp_path / "none"))


def test_a_name_that_cannot_be_fetched(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "no/such-model" in load_error("no/such-model")
