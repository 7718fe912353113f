"""The page of searches in stored keys, from ``scripts/bench/context_search.csv``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pages.measurements import Row, chosen, conditions, fixed, page, percent, read, table, tokens

INDEXES = ("flat", "numpy", "int4", "clusters", "graph", "diprs")
ALPHAS = ("0.012", "0.004", "0.001", "0.0001")


def searches_page() -> str:
    """What each index finds, reads and takes."""
    rows = read("context_search")
    parts = [part for data, length in _cases(rows) for part in _section(chosen(rows, data=data, length=length))]
    return page(
        "Searches in stored keys",
        "Read this to know which index finds what, and what it costs. The settings are on the page of the [context "
        'database](../context.md#settings); the optimizer (`method="auto"`) chooses by what it measures on your '
        "machine.",
        "`flat` looks at every key and is exact, as is `int4`, whose 4-bit codes rule out keys that cannot be within "
        "beta; `clusters` and `graph` are not. `numpy` is a float32 product and a threshold. `diprs` is AlayaDB's "
        "published search (arXiv 2504.10326) in the same graph: the window's greatest score is a bound that few "
        "neighbours reach, and its first places go to whatever comes first. `graph` takes the best first, 256 or more.",
        "Recall, and the share of keys read, are of a query head that searches by itself; *together* is what all seven "
        "query heads of a KV head read when they look at everything that one of them opens, of a graph the sum. Times "
        "are CPU time of one thread; other programs ran beside it. The window of 128 + 512 tokens is attended to "
        "anyway. Means over KV heads.",
        "For seven heads together the exact scan is hard to beat while the keys fit into the processor's cache, at 16K "
        "tokens. At 64K clusters take half as long, and codes no longer than the scan. A graph is faster for one head "
        "that searches by itself, and misses more.",
        *parts,
    )


def _cases(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["data"], row["length"]) for row in rows))


def _section(rows: Sequence[Row]) -> Iterator[str]:
    heads = {row["head"] for row in rows}
    yield f"## {tokens(rows[0]['length'])} tokens: {rows[0]['data']}"
    yield f"{len(heads)} KV heads. {conditions(rows, 'context_search', 'context_search')}"
    sizes = ", ".join(f"{fixed(_mean(rows, 'size', 'flat', alpha))} ({alpha})" for alpha in ALPHAS)
    yield f"Tokens within beta of a head, by alpha: {sizes}."
    yield table(
        ["index", *(f"recall {alpha}" for alpha in ALPHAS), *(f"read {alpha}" for alpha in ALPHAS), "together 0.001"],
        [_found(rows, index) for index in INDEXES],
    )
    yield table(
        [
            "index",
            "us, 7 heads, 0.004",
            "us, 7 heads, 0.001",
            "us, one head, 0.001",
            "weight kept 0.001",
            "bytes per key",
            "seconds to build",
        ],
        [_cost(rows, index) for index in INDEXES],
    )


def _mean(rows: Sequence[Row], column: str, index: str, alpha: str) -> float:
    values = [float(row[column]) for row in chosen(rows, index=index, alpha=alpha)]
    return sum(values) / len(values)


def _found(rows: Sequence[Row], index: str) -> list[str]:
    recall = [fixed(_mean(rows, "recall", index, alpha), 3) for alpha in ALPHAS]
    return [index, *recall, *(percent(_mean(rows, "read", index, alpha)) for alpha in ALPHAS),
            percent(_mean(rows, "read_together", index, "0.001"))]  # fmt: skip


def _cost(rows: Sequence[Row], index: str) -> list[str]:
    us = [("us", "0.004"), ("us", "0.001"), ("us_one", "0.001")]
    return [
        index,
        *(fixed(_mean(rows, column, index, alpha)) for column, alpha in us),
        fixed(_mean(rows, "mass", index, "0.001"), 4),
        fixed(_mean(rows, "bytes", index, "0.001")),
        fixed(_mean(rows, "build_s", index, "0.001"), 2),
    ]
