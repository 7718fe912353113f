#!/usr/bin/env python3
"""Searches in the keys of a stored context, side by side: what they find, what they read, how long they take.

    context_search.py KEYS.npz [--lengths 16384,32768] [--alphas 0.012,0.004,0.001,0.0001] [--indexes flat,int4,...]
                      [--queries 16] [--csv FILE] [--commit NAME] [--data NAME]
    context_search.py KEYS.npz --model FOLDER --text TABLE.parquet:COLUMN [--lengths 16384] [--heads 4:0,12:1,20:0]

With ``--model`` KEYS.npz is made first, on the CPU: the keys and values of some KV heads, queries of all their heads
for the last 128 tokens, and queries all over the context, which a graph is built from. Arrays: ``keys_LAYER_HEAD`` and
``values_LAYER_HEAD`` uint16 (bfloat16) ``[tokens, head_size]``, ``queries_LENGTH_LAYER_HEAD`` float32 ``[heads, 128,
head_size]``, ``sampled_LENGTH_LAYER_HEAD`` float32 ``[queries, head_size]``. Without the last, a graph is built from
the first half of the late queries; all searches are asked the second half.

The window, 128 tokens at the start and 512 at the end, is attended to exactly; its greatest score is the bound that a
search starts with. Searches are of the body. Each line of the CSV is one index, length, KV head and alpha:
recall     share of the tokens within beta that are found, mean over query heads and queries that have some
size       tokens within beta of a query head
read, read_together   share of the keys that one head reads by itself; that all heads of the KV head read together, of
           a graph, in which heads search apart, the sum
mass, mass_exact      share of the attention weight that window and found tokens have; window and all within beta
us, us_one            CPU time of all query heads, and of one by itself; median
bytes                 of the index, per key; build_s: CPU time of building it
``numpy`` is a float32 product and a threshold; ``diprs`` AlayaDB's published search in the same graph.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lines import check_lines

from vllm_relational.compare.orders import append_csv
from vllm_relational.compare.provenance import code_version, machine
from vllm_relational.context.search import Flat, Hits, tokens_between
from vllm_relational.context.search.calibrate import cpu_us
from vllm_relational.context.search.graph import Graph
from vllm_relational.context.search.hits import hits_of
from vllm_relational.context.search.indexes import build
from vllm_relational.context.search.naive import numbers

FIRST, LAST = 128, 512
LATE, REPEATS = 128, 5
FIELDS = (
    "time", "commit", "machine", "data", "length", "head", "index", "alpha", "recall", "size", "read", "read_together",
    "mass", "mass_exact", "us", "us_one", "bytes", "build_s",
)  # fmt: skip
INDEXES = "flat,numpy,int4,clusters,graph,diprs"


class Case:
    """Some keys, the queries that are asked, and what they should find."""

    def __init__(self, arrays: Any, length: int, name: str, num_queries: int) -> None:
        self.length, self.name = length, name
        self.keys = np.ascontiguousarray(arrays[f"keys_{name}"][:length])
        late = np.ascontiguousarray(arrays[f"queries_{length}_{name}"].transpose(1, 0, 2))
        built_from = f"sampled_{length}_{name}"
        half = late[: len(late) // 2].reshape(-1, late.shape[2])
        self.sampled = arrays[built_from] if built_from in arrays.files else half
        self.asked = late[len(late) // 2 :][:: max(1, len(late) // 2 // num_queries)]
        self.scale = self.keys.shape[1] ** -0.5
        self.body = (FIRST, length - LAST)
        self.lower = [self._window(queries) for queries in self.asked]

    def _window(self, queries: np.ndarray) -> np.ndarray:
        ends = [tokens_between(self.keys, queries, *ends) for ends in ((0, FIRST), (self.body[1], self.length))]
        return np.max([hits.scores.reshape(len(queries), -1).max(1) for hits in ends], axis=0)

    def weights(self, query: int) -> np.ndarray:
        """Attention over all tokens: float64 ``[num_heads, num_keys]``."""
        logits = self.asked[query].astype(np.float64) @ numbers(self.keys).T * self.scale
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)


class Products:
    """numpy: a product in float32 and a threshold."""

    nbytes = 0

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = numbers(keys).astype(np.float32)

    def dipr(self, queries: np.ndarray, beta: float, start: int, stop: int, lower: np.ndarray) -> Hits:
        scores = queries @ self.keys[start:stop].T
        kept = scores >= (np.maximum(scores.max(-1), lower) - beta)[:, None]
        found = [np.flatnonzero(row) for row in kept]
        return hits_of(
            [row + start for row in found], [s[row] for s, row in zip(scores, found, strict=True)], stop - start
        )


def made(kind: str, case: Case) -> tuple[Any, Callable[..., Hits], float]:
    """The index, its search, and the CPU seconds of building it."""
    before = time.thread_time()
    if kind == "numpy":
        index: Any = Products(case.keys)
    elif kind == "diprs":
        index = Graph.build(case.keys, case.sampled, window=(FIRST, LAST))
    else:
        index = build(kind, case.keys, case.sampled)
    return index, index.diprs if kind == "diprs" else index.dipr, time.thread_time() - before


def measured(case: Case, search: Callable[..., Hits], beta: float) -> dict[str, float]:
    """Over all queries of a case: the numbers of a line."""
    seen: dict[str, list[float]] = {name: [] for name in ("recall", "size", "read", "read_together", "mass",
                                                          "mass_exact", "us", "us_one")}  # fmt: skip
    keys = case.body[1] - case.body[0]
    for query, (queries, lower) in enumerate(zip(case.asked, case.lower, strict=True)):
        exact = Flat(case.keys).dipr(queries, beta, *case.body, lower)
        weights = case.weights(query)
        window = weights[:, :FIRST].sum(-1) + weights[:, case.body[1] :].sum(-1)
        together = search(queries, beta, *case.body, lower)
        seen["read_together"].append(together.visited / keys)
        seen["us"].append(cpu_us(partial(search, queries, beta, *case.body, lower), REPEATS))
        for head in range(len(queries)):
            own = slice(head, head + 1)
            found = search(queries[own], beta, *case.body, lower[own])
            wanted = exact.of(head)
            if len(wanted):
                seen["recall"].append(float(np.isin(wanted, found.of(0)).mean()))
            seen["size"].append(len(wanted))
            seen["read"].append(found.visited / keys)
            seen["mass"].append(window[head] + weights[head, found.of(0)].sum())
            seen["mass_exact"].append(window[head] + weights[head, wanted].sum())
        seen["us_one"].append(cpu_us(partial(search, queries[:1], beta, *case.body, lower[:1]), REPEATS))
    return {name: float(np.mean(values)) if values else 1.0 for name, values in seen.items()}


def check(case: Case, search: Callable[..., Hits], beta: float, exact: bool) -> None:
    """Nothing is timed that names a token outside the set, or misses one where it is said to be exact."""
    for queries, lower in zip(case.asked[:2], case.lower[:2], strict=True):
        found, wanted = search(queries, beta, *case.body, lower), Flat(case.keys).dipr(queries, beta, *case.body, lower)
        for head in range(len(queries)):
            extra = np.setdiff1d(found.of(head), wanted.of(head))
            missing = np.setdiff1d(wanted.of(head), found.of(head))
            assert len(extra) <= 1 and (not exact or len(missing) <= 1), "a search is wrong"  # 1: rounding at the edge


def lines(arguments: argparse.Namespace, arrays: Any) -> Iterator[dict[str, Any]]:
    names = sorted({name.removeprefix("keys_") for name in arrays.files if name.startswith("keys_")})
    start = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "commit": arguments.commit or code_version()}
    start |= {"machine": machine(), "data": arguments.data}
    for length in map(int, arguments.lengths.split(",")):
        for name in names:
            case = Case(arrays, length, name, arguments.queries)
            for kind in arguments.indexes.split(","):
                index, search, build_s = made(kind, case)
                for alpha in map(float, arguments.alphas.split(",")):
                    beta = -float(np.log(alpha)) / case.scale
                    check(case, search, beta, exact=kind in ("flat", "numpy", "int4"))
                    numbers_ = {key: f"{value:.4g}" for key, value in measured(case, search, beta).items()}
                    more = {"bytes": f"{index.nbytes / length:.1f}", "build_s": f"{build_s:.3f}"}
                    yield {**start, "length": length, "head": name, "index": kind, "alpha": alpha, **numbers_, **more}


# ------------------------------------------------------------------------------------------------- keys of a model
def make_keys(path: Path, model_folder: str, text: str, lengths: list[int], heads: list[tuple[int, int]]) -> None:
    """Prefill the longest length on the CPU, a part at a time, and write keys, values and queries."""
    import torch
    from texts import token_ids
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    torch.set_grad_enabled(False)
    asked: dict[int, list[Any]] = {layer: [] for layer, _ in heads}
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(module: Any, query: Any, *others: Any, **more: Any) -> Any:
        if module.layer_idx in asked:
            asked[module.layer_idx].append(query[0].float().cpu())
        return sdpa(module, query, *others, **more)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    ids = token_ids(AutoTokenizer.from_pretrained(model_folder), text, max(lengths))
    cache = DynamicCache(config=model.config)
    for part in ids.split(1024):
        model(part[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    np.savez(path, **dict(_arrays(cache, {layer: torch.cat(each, 1) for layer, each in asked.items()}, lengths, heads)))


def _arrays(cache: Any, asked: dict[int, Any], lengths: list[int], heads: list[tuple[int, int]]) -> Iterator[Any]:
    import torch

    for layer, head in heads:
        for name, held in (("keys", cache.layers[layer].keys), ("values", cache.layers[layer].values)):
            yield f"{name}_{layer}_{head}", held[0, head].contiguous().view(torch.uint16).numpy()
        group = asked[layer].shape[0] // cache.layers[layer].keys.shape[1]
        own = asked[layer][head * group : (head + 1) * group]
        for length in lengths:
            yield f"queries_{length}_{layer}_{head}", own[:, length - LATE : length].numpy()
            sampled = own[:, : length - LATE : max(1, length // 1024)]
            yield f"sampled_{length}_{layer}_{head}", sampled.reshape(-1, own.shape[2]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--text")
    parser.add_argument("--heads", default="4:0,12:1,20:0")
    parser.add_argument("--lengths", default="16384,32768")
    parser.add_argument("--alphas", default="0.012,0.004,0.001,0.0001")
    parser.add_argument("--indexes", default=INDEXES)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--commit")
    parser.add_argument("--data", default="")
    arguments = parser.parse_args()
    check_lines(parser, arguments.csv, FIELDS)
    if arguments.model:
        heads = [(int(layer), int(head)) for layer, head in (each.split(":") for each in arguments.heads.split(","))]
        make_keys(arguments.keys, arguments.model, arguments.text, [*map(int, arguments.lengths.split(","))], heads)
    with np.load(arguments.keys) as arrays:
        for line in lines(arguments, arrays):
            print(" ".join(f"{key}={line[key]}" for key in [*line][4:]), flush=True)
            if arguments.csv:
                append_csv(arguments.csv, [line])


if __name__ == "__main__":
    main()
