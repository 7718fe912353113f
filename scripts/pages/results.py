"""Pages of measurements: planner, scheduler, retrieval, deduplication, SQL; and the list of all of them."""

from __future__ import annotations

from statistics import mean, median

from pages.measurements import Row, conditions, fixed, one, page, percent, read, table, times

PLANNERS = ("original", "fixed", "fixed_v2", "ggr", "tree")


def origin(name: str) -> str:
    """Commit, machine and file of a CSV without such columns: a line of ``origins.csv``."""
    row = one(read("origins"), file=name)
    machine = row["machine"]
    return f"{machine[0].upper()}{machine[1:]}; no model; commit {row['commit']}. Numbers: `scripts/bench/{name}.csv`."


# --------------------------------------------------------------------------------------------------------- planner
def planner_page() -> str:
    """Shares of characters served, seconds, other tables, growth and shapes."""
    return page(
        "The planner alone",
        "Read this to choose an order, and to know how long planning takes for a table of your size. No model and no "
        "engine is involved: hit rates count characters, with a cache without limit.",
        "## Seven tables",
        f"{origin('planner')} At most 15,000 rows, columns of URLs dropped.",
        table(
            ["table", "rows x columns", "in repeated cells", *(f"`{name}`" for name in PLANNERS), "seconds of `tree`"],
            _planner_rows(),
        ),
        "## Tables that the planner was not made on",
        f"{origin('planner_other_tables')} {_other_tables()}",
        "## Growth",
        f"{origin('planner_growth')} One table, rows drawn again, one cell in twenty changed. Memory is that of the "
        "process beyond the table.",
        table(["rows", "cells", "seconds of `ggr`", "seconds of `tree`", "memory of `tree`"], _growth_rows()),
        "## Tables of every shape",
        f"{origin('planner_shapes')} Hit rates count whole cells.",
        table(["columns", "rows", "seconds", "processor seconds", "hits of `tree`", "hits of `ggr`"], _shape_rows()),
    )


def _planner_rows() -> list[list[str]]:
    rows = read("planner")
    made = []
    for name in dict.fromkeys(row["table"] for row in rows):
        by_planner = {planner: one(rows, table=name, planner=planner) for planner in PLANNERS}
        tree = by_planner["tree"]
        size = f"{fixed(tree['rows'])} x {tree['columns']}"
        hits = [percent(row["hit_rate_chars"]) for row in by_planner.values()]
        made.append([name, size, percent(tree["repeated_chars"]), *hits, fixed(tree["seconds"], 2)])
    return made


def _other_tables() -> str:
    rows = read("planner_other_tables")
    baselines = ("original", "fixed", "fixed_v2", "algorithm_1", "ggr")
    gains = [float(row["tree"]) - max(float(row[name]) for name in baselines if row[name]) for row in rows]
    seconds = [float(row["tree_seconds"]) for row in rows]
    return (
        f"Over {len(rows)} tables from public packages, `tree` is {fixed(100 * mean(gains), 1)} points above the best "
        f"of the other orders on average (median {fixed(100 * median(gains), 1)}), below it on "
        f"{sum(gain < 0 for gain in gains)}, and takes {fixed(max(seconds), 2)} s at most."
    )


def _growth_rows() -> list[list[str]]:
    rows = read("planner_growth")
    made = []
    for size in dict.fromkeys(row["rows"] for row in rows):
        ggr, tree = (one(rows, rows=size, planner=planner) for planner in ("ggr", "tree"))
        memory = int(tree["peak_mb"]) - int(tree["table_mb"])
        made.append(
            [fixed(size), fixed(tree["cells"]), fixed(ggr["seconds"], 3), fixed(tree["seconds"], 2), f"{memory} MB"]
        )
    return made


def _shape_rows() -> list[list[str]]:
    return [
        [
            row["shape"],
            fixed(row["rows"]),
            fixed(row["seconds"], 1),
            fixed(row["cpu_seconds"], 1),
            percent(row["hit_share"]),
            percent(row["ggr_hit_share"]),
        ]
        for row in read("planner_shapes")
    ]


# ------------------------------------------------------------------------------------------------------- scheduler
WORKLOADS = {
    "nested": "*nested*: 90 tokens shared by all rows, 150 by ten, 36 of each row's own",
    "shared": "*shared*: 250 tokens shared by ten rows, 30 of their own",
    "twice": "*twice*: every document is asked about twice",
    "filter": "*filter*: three of ten documents are asked again once their first answer is there",
    "queries": "*queries*: a question about each document, another one 250 documents behind it",
    "distinct": "*distinct*: no two rows are alike, nothing to gain",
}
VARIANTS = ("stock", "batch", "prefix-tree", "prefix-tree+batch")


def scheduler_page() -> str:
    """Rows per second of vLLM with a small KV cache, by order and eviction; token-exact reuse."""
    kv, partial = read("kv"), read("partial_reuse")
    return page(
        "The batch-aware scheduler",
        "Read this to decide whether `--order prefix-tree`, `--eviction batch` and `--token-exact` are worth switching "
        "on for a server. What they do is on [the page of the scheduler](../scheduler.md).",
        "## Order and eviction",
        f"{conditions(kv, 'kv', 'kv')} The KV cache holds 3,000 blocks of 16 tokens, answers are one token. "
        "*@600* means that 600 requests arrive per second, */768* that 768 wait at any time; elsewhere all wait from "
        "the start. `stock` is vLLM's own scheduler. Of 200 rows checked in every run all answered as under stock.",
        "\n".join(f"- {text}" for text in WORKLOADS.values()),
        table(["workload", "tokens per step", *(f"`{name}`" for name in VARIANTS), "best gain"], _kv_rows(kv)),
        "In each cell: rows per second, hit rate, and where requests arrive over time the 99th percentile of latency.",
        "## Token-exact reuse",
        f"{conditions(partial, 'partial_reuse', 'partial_reuse')} 4,000 rows in 50 groups, cache without limit, median "
        "of three rounds with the slowest and the fastest. The second pair of lines has nothing to gain: it shows how "
        "far runs differ.",
        table(
            ["tokens shared + own", "commit", "variant", "computed per row", "least possible", "rows/s", "gain"],
            [_partial_row(row) for row in partial],
        ),
    )


def _kv_rows(rows: list[Row]) -> list[list[str]]:
    made = []
    for workload, step in dict.fromkeys((row["workload"], row["batched_tokens"]) for row in rows):
        found = [row for row in rows if (row["workload"], row["batched_tokens"]) == (workload, step)]
        by_variant = {row["variant"]: row for row in found}  # the last run of each
        cells = [_kv_cell(by_variant[name]) if name in by_variant else "" for name in VARIANTS]
        stock = float(by_variant["stock"]["rows_per_second"])
        best = max(float(row["rows_per_second"]) for name, row in by_variant.items() if name != "nothing on")
        made.append([workload, fixed(step), *cells, times(best / stock)])
    return made


def _kv_cell(row: Row) -> str:
    shown = f"{fixed(row['rows_per_second'])}, {percent(row['hit_rate'])}"
    arrives = "@" in row["workload"]
    return f"{shown}, {fixed(row['latency_p99'], 1)} s" if arrives and row["latency_p99"] else shown


def _partial_row(row: Row) -> list[str]:
    return [
        f"{row['shared']} + {row['own']}",
        row["commit"],
        {"partial": "`token_exact`"}.get(row["variant"], row["variant"]),
        fixed(row["computed_tokens_a_row"], 1),
        fixed(row["ideal_tokens_a_row"], 1),
        f"{fixed(row['rows_per_second'])} ({fixed(row['slowest_round'])} to {fixed(row['fastest_round'])})",
        times(row["speed_up"]),
    ]


# ------------------------------------------------------------------------------- retrieval, deduplication, SQL
def retrieval_page() -> str:
    """Recall, and hit rates by placement of the passages."""
    rows = read("rag")
    first = rows[0]
    return page(
        "Retrieval",
        "Read this to see what placing passages in shared columns saves, and how well the default embedding model "
        "finds them. How to use it is on [the page of retrieval](../rag.md).",
        f"{', '.join(dict.fromkeys(row['machine'] for row in rows))}; tokens of {first['tokenizer']}; commit "
        f"{', '.join(dict.fromkeys(row['commit'] for row in rows))}. Numbers: `scripts/bench/rag.csv`, made by "
        f"`scripts/bench/rag.py`. {fixed(first['questions'])} questions of SQuAD 1.1 dev, each with the {first['k']} "
        f"nearest of {fixed(first['passages'])} contexts. Hit rates are forecasts, cache without limit.",
        table(
            ["retriever", "placement", "commit", "recall@1", "recall@5", "original", "`fixed`", "`tree`", "seconds"],
            [_rag_row(row) for row in rows],
        ),
        "*Seconds* is searching and placing; embedding the passages and the questions comes before it. *shared* is the "
        "default: the same passage stands in the same column for all rows, as far as possible.",
    )


def _rag_row(row: Row) -> list[str]:
    hits = [percent(row[f"hit_rate_{order}"]) for order in ("original", "fixed", "tree")]
    seconds = float(row["search_seconds"]) + float(row["place_seconds"])
    recall = [percent(row["recall_at_1"]), percent(row["recall_at_k"])]
    return [row["retriever"], row["placement"], row["commit"], *recall, *hits, fixed(seconds, 1)]


def dedup_page() -> str:
    """Seconds, memory and recall of semantic deduplication."""
    return page(
        "Semantic deduplication",
        "Read this to choose a similarity, and to know what grouping 100,000 rows costs. What the modes do is on [the "
        "page of deduplication](../dedup.md).",
        f"{origin('semantic_dedup')} Made by `scripts/bench/semantic_dedup.py`. *minilm_sentences*: sentences from "
        "reviews, embedded by all-MiniLM-L6-v2; *made*: vectors with clumps of 2 to 20.",
        table(
            [
                "vectors",
                "rows",
                "similarity",
                "seconds",
                "memory",
                "rows merged",
                "neighbours in a group",
                "in blocks / full join",
            ],
            [_dedup_row(row) for row in read("semantic_dedup")],
        ),
        "The last column compares what was merged among 5,000 sampled rows with a full self-join of them.",
    )


def _dedup_row(row: Row) -> list[str]:
    return [
        row["vectors"],
        fixed(row["rows"]),
        row["threshold"],
        fixed(row["seconds"], 1),
        f"{row['peak_mb']} MB",
        percent(row["merged"]),
        percent(row["neighbours"]),
        f"{percent(row['merged_in_blocks'], 2)} / {percent(row['merged_by_join'], 2)}",
    ]


def sql_page() -> str:
    """What explaining a statement over a million rows costs."""
    rows = read("sql_explain")
    return page(
        "Explaining SQL",
        "Read this to know what `vllm-relational explain` costs on a large table. How to use it is on [the page of "
        "SQL](../sql.md).",
        f"{conditions(rows, 'sql_explain', 'sql_explain')} One filter over all five columns of a table of which a "
        "third of the rows is repeated.",
        table(
            [
                "token counts",
                "rows",
                "distinct rows",
                "prompt tokens",
                "hit rate",
                "seconds",
                "processor seconds",
                "memory",
            ],
            [_sql_row(row) for row in rows],
        ),
    )


def _sql_row(row: Row) -> list[str]:
    sizes = [fixed(row[name]) for name in ("rows", "distinct_rows", "prompt_tokens")]
    return [
        row["token_counts"].replace(" a ", " per "),
        *sizes,
        percent(row["hit_rate"]),
        fixed(row["seconds"], 1),
        fixed(row["cpu_seconds"], 1),
        f"{row['peak_gib']} GiB",
    ]


# ------------------------------------------------------------------------------------------------------------ index
INDEX = {
    "orders.md": "how much faster are seven real tables, in which order?",
    "planner.md": "which share do the planners find, and how long do they take?",
    "scheduler.md": "what do prefix order, batch eviction and token-exact reuse give a server?",
    "attention.md": "when is sparse attention faster, and does it change answers?",
    "retrieval.md": "what does placing passages save?",
    "dedup.md": "what does semantic deduplication merge, at what cost?",
    "sql.md": "what does explaining a statement over a million rows cost?",
    "searches.md": "what do searches in stored keys find, read and take?",
}


def index_page() -> str:
    """The list of the pages."""
    return page(
        "Results",
        "Find here what was measured, with machine, model and commit. Every table is made from a CSV of "
        "`scripts/bench`; a test fails when a page and its CSV differ.",
        "\n".join(f"- [{name.removesuffix('.md')}]({name}): {question}" for name, question in INDEX.items()),
        "To measure again, run the script that a page names; it appends to the CSV. Then "
        "`python scripts/make_pages.py` makes the pages anew. "
        "[CONTRIBUTING.md](../../CONTRIBUTING.md#how-to-measure) says what a measurement must state.",
    )
