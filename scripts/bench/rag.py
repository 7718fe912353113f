#!/usr/bin/env python3
"""Retrieval over SQuAD: recall against BM25, and what the order of the passages lets prompts share. No engine.

    rag.py squad_v11_dev.parquet --embedder FOLDER --tokenizer FOLDER --csv rag.csv [-k 5] [--sql-only]

Needs bm25s and PyStemmer beside the extras [semantic,sql]. Every question is asked with the k passages that are
nearest to it, and the context that it was written for counts as found or not. Hit rates are forecasts over the whole
table, cache without limit, blocks of 16 tokens. Before any line is written, checks: the index finds what a full
comparison of all vectors finds, and both placements give every question the same passages. The placement "shared, SQL"
is what EXPLAIN of a query with ``retrieve(question, 'contexts.index', k)`` forecasts.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pyarrow as pa
import Stemmer
from lines import check_lines

from vllm_relational import RelationalLLM, sql
from vllm_relational.compare.orders import append_csv
from vllm_relational.compare.provenance import code_version, machine
from vllm_relational.embed import embed_texts, load_embedder
from vllm_relational.retrieval import TextIndex, build_index
from vllm_relational.retrieval.retriever import Retriever
from vllm_relational.retrieval.sharing import shared_order
from vllm_relational.table import read_table

PLANNERS = ("original", "fixed", "tree")
FIELDS = (
    "time", "commit", "machine", "embedder", "tokenizer", "table", "questions", "passages", "k", "retriever",
    "recall_at_1", "recall_at_k", "embed_passages_seconds", "embed_questions_seconds", "search_seconds",
    "place_seconds", "placement", "distinct_prompts", "prompt_tokens", "hit_rate_original", "hit_rate_fixed",
    "hit_rate_tree", "ceiling", "token_counts",
)  # fmt: skip
QUESTION_FIRST = "Answer {{question}} in a few words. The answer is in one of these: {contexts}."


class Stopwatch:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


class Remembering:
    """An embedder that embeds a text once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._embedder = load_embedder(name)
        self._embedder(["loads the model"])
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known.update(zip(new, self._embedder(new) if new else [], strict=True))
        return np.stack([self._known[text] for text in texts])


def with_embeddings(
    table: pa.Table, source: Path, embedder: Remembering, path: Path, k: int, watch: Stopwatch
) -> tuple[TextIndex, np.ndarray]:
    """The index over the contexts, kept at ``path``, and int64 ``[num_questions, k]``, numbers of passages."""
    questions = table["question"].to_pylist()
    with watch.time("embed_passages_seconds"):
        index = build_index(table, "context", embedder, path, source=source)
    with watch.time("embed_questions_seconds"):
        vectors = embed_texts(embedder, questions)
    with watch.time("search_seconds"):
        _, found = index._search(vectors, k)
    check_search(index, embedder, vectors, found)
    return index, found


def check_search(index: TextIndex, embedder: Remembering, vectors: np.ndarray, found: np.ndarray) -> None:
    """Against a full comparison, on a sample."""
    sample = slice(None, None, 101)
    cosines = vectors[sample] @ embed_texts(embedder, index.passages.texts).T
    best = -np.sort(-cosines, axis=1)[:, : found.shape[1]]
    assert np.allclose(np.take_along_axis(cosines, found[sample], 1), best, atol=1e-4)


def with_bm25(texts: list[str], questions: list[str], k: int, watch: Stopwatch) -> np.ndarray:
    """int64 ``[num_questions, k]``, numbers of passages; stop words and stems of English."""
    stemmer = Stemmer.Stemmer("english")
    with watch.time("embed_passages_seconds"):
        index = bm25s.BM25()
        index.index(bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    with watch.time("embed_questions_seconds"):
        words = bm25s.tokenize(questions, stopwords="en", stemmer=stemmer, show_progress=False)
    with watch.time("search_seconds"):
        found, _ = index.retrieve(words, k=k, show_progress=False)
    return found.astype(np.int64)


def recall(found: np.ndarray, gold: np.ndarray, k: int) -> float:
    return round(float((found[:, :k] == gold[:, None]).any(axis=1).mean()), 4)


def hit_rates(llm: RelationalLLM, table: pa.Table, texts: list[str], order: np.ndarray) -> dict[str, Any]:
    """Forecasts of the prompts whose passages stand in that order."""
    names = [f"context_{place + 1}" for place in range(order.shape[1])]
    fields = {name: [texts[number] for number in order[:, place].tolist()] for place, name in enumerate(names)}
    prompt = QUESTION_FIRST.format(contexts=", ".join(f"{{{name}}}" for name in names))
    prepared = llm.prepare(pa.table({"question": table["question"], **fields}), prompt)
    info = dataclasses.replace(llm.expected_engine(), block_size=16)
    reports = {planner: prepared.plan(info, planner).report for planner in PLANNERS}
    report = reports["tree"]
    rates = {f"hit_rate_{planner}": round(each.predicted.hit_rate, 4) for planner, each in reports.items()}
    return {
        "distinct_prompts": report.num_distinct,
        "prompt_tokens": report.predicted.prompt_tokens,
        **rates,
        "ceiling": round(report.ceiling, 4),
        "token_counts": report.token_counts,
    }


def sql_hit_rates(llm: RelationalLLM, source: Path, index: Path, embedder: Remembering, k: int) -> dict[str, Any]:
    """What EXPLAIN forecasts of the same prompts, asked for in SQL."""
    names = [f"context_{place + 1}" for place in range(k)]
    prompt = QUESTION_FIRST.format(contexts=", ".join(f"{{{name}}}" for name in names))
    place, where = (str(path).replace("'", "''") for path in (source, index))
    query = f"SELECT LLM('{prompt}', question, {', '.join(names)}) FROM '{place}', retrieve(question, '{where}', {k})"
    found = {}
    for planner in PLANNERS:
        with sql.connect(llm=llm, order=planner, retriever=Retriever(embedder)) as connection:
            found[planner] = connection.forecast(query).forecasts[-1]
    tree = found["tree"]
    assert tree.is_certain
    return {
        "distinct_prompts": tree.to_ask,
        "prompt_tokens": tree.tokens.prompt,
        **{f"hit_rate_{planner}": round(each.tokens.hit_rate, 4) for planner, each in found.items()},
        "ceiling": "",
        "token_counts": tree.counts,
    }


def placements(found: np.ndarray, texts: list[str], watch: Stopwatch) -> dict[str, np.ndarray]:
    with watch.time("place_seconds"):
        shared = shared_order(found, np.array([len(text) for text in texts], np.int64))
    assert np.array_equal(np.sort(shared, axis=1), np.sort(found, axis=1))
    return {"rank": found, "shared": shared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--embedder", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--sql-only", action="store_true", help="only the line of SQL")
    args = parser.parse_args()
    check_lines(parser, args.csv, FIELDS)
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder, "contexts.index"))


def measure(args: argparse.Namespace, path: Path) -> None:
    """Append one line a retriever and placement, then that of SQL."""
    table, source = read_table(args.table), args.table.resolve()
    llm = RelationalLLM(args.tokenizer, block_size=16)
    embedder = Remembering(args.embedder)
    watches = {"embeddings": Stopwatch(), "bm25": Stopwatch()}
    index, nearest = with_embeddings(table, source, embedder, path, args.k, watches["embeddings"])
    texts = index.passages.texts
    number = {text: place for place, text in enumerate(texts)}
    gold = np.array([number[text] for text in table["context"].to_pylist()])
    found = {"embeddings": nearest}
    if not args.sql_only:
        found["bm25"] = with_bm25(texts, table["question"].to_pylist(), args.k, watches["bm25"])

    def write(retriever: str, placement: str, rates: dict[str, Any]) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": code_version(),
            "machine": machine(),
            "embedder": Path(args.embedder).parent.name if retriever == "embeddings" else "bm25s",
            "tokenizer": Path(args.tokenizer).name,
            "table": args.table.name,
            "questions": table.num_rows,
            "passages": len(texts),
            "k": args.k,
            "retriever": retriever,
            "recall_at_1": recall(found[retriever], gold, 1),
            "recall_at_k": recall(found[retriever], gold, args.k),
            **watches[retriever].seconds,
            "placement": placement,
            **rates,
        }
        print(line, flush=True)
        append_csv(args.csv, [line])

    for retriever, passages in found.items():
        orders = placements(passages, texts, watches[retriever])
        for placement, order in orders.items() if not args.sql_only else ():
            write(retriever, placement, hit_rates(llm, table, texts, order))
    write("embeddings", "shared, SQL", sql_hit_rates(llm, source, path, embedder, args.k))


if __name__ == "__main__":
    main()
