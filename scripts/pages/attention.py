"""The page of sparse attention: one layer, whole engines, answers, and which tokens matter."""

from __future__ import annotations

from pages.measurements import Row, chosen, conditions, fixed, one, page, percent, read, table, times, tokens

LAYER_COMMIT, LAYER_BLOCK = "2f3a771", "64"
LAYER_WAYS = {
    "FlashAttention 3": "FlashAttention 3",
    "FlashAttention 3, fp8": "the same, fp8",
    "xformers": "xformers",
    "scan 0.012": "scan, alpha 0.012",
    "scan 0.004": "scan, alpha 0.004",
    "v_skip 0.004": "v_skip, alpha 0.004",
    "pages 2048": "top-k pages, 2,048 tokens",
}
TRIALS = {
    "vllm": "all tokens, FlashAttention",
    "vllm dipr method=v_skip alpha=0": "all tokens, `v_skip`",
    "vllm dipr alpha=0.001": "scan, alpha 0.001",
    "vllm dipr": "**scan, alpha 0.004** (default)",
    "vllm dipr alpha=0.012": "scan, alpha 0.012",
    "vllm dipr alpha=1 tail=False recent=2560": "the last 2,560 tokens",
    "vllm dipr method=pages top_tokens=2048": "top-k pages, 2,048 tokens",
    "vllm dipr method=pages top_tokens=64 recent=2560": "top-k pages, 64 tokens, last 2,560",
}
MEASURED = {
    "dipr:1.2e-2": "DIPR, alpha 0.012",
    "dipr:4e-3": "DIPR, alpha 0.004",
    "top:500": "top 500 per head",
    "dipr:4e-3+tail": "DIPR, alpha 0.004, with the tail",
    "scan:4e-3+est": "what a scan reads, alpha 0.004, with the tail (default)",
}
LENGTHS = ("4096", "8192", "16384", "32768")


def attention_page() -> str:
    """Microseconds of a layer, milliseconds per token, answers, divergence."""
    layer = chosen(read("dipr"), commit=LAYER_COMMIT, data="real scores", block=LAYER_BLOCK)
    engine, quality, measure = read("dipr_engine"), read("dipr_quality"), read("dipr_measure")
    asked = [row for row in quality if row["trial"] in TRIALS]
    reached = [row for row in measure if row["trial"] in MEASURED]
    return page(
        "Sparse attention",
        "Read this to decide whether `--attention dipr` pays for your context length and batch size, and what it does "
        "to answers. How it works is on [its own page](../dipr.md).",
        "## Time per output token in vLLM",
        f"{conditions(engine, 'dipr_engine', 'dipr_engine')} Each line is the last run of one configuration: default "
        "settings, median of the rounds, FlashAttention 3 in the same run beside it. *Listed* is the share of the "
        "context that a scan attends to exactly; weights and texts are random, of so many topics. Lines with no topics "
        "are tokens without any likeness between neighbours: **there sparse attention loses**.",
        table(
            ["context x batch", "machine", "layers", "topics", "commit", "FlashAttention 3", "DIPR", "gain", "listed"],
            _engine_rows(engine),
        ),
        "![milliseconds per token](../dipr_engine.svg)",
        "## One layer's decode attention",
        f"{conditions(layer, 'dipr', 'dipr_kernels')} Llama-3.1-8B's shape, bfloat16, blocks of {LAYER_BLOCK} tokens, "
        "scores of a real model; microseconds, and how many times faster than FlashAttention 3.",
        table(["context x batch", *LAYER_WAYS.values()], _layer_rows(layer)),
        "![microseconds of one layer](../dipr_kernels.svg)",
        "## Answers",
        f"{conditions(asked, 'dipr_quality', 'dipr_quality')} Six generated tasks, 100 prompts each at 4K, 8K, 16K and "
        "32K tokens, exact match. Points from dense attention with their 95% interval. The second line is the noise: "
        "exact attention by other kernels.",
        table(
            ["attends to", "tokens read, 4K to 32K", "points, all lengths", "at 16K", "at 32K", "same output"],
            _answer_rows(asked),
        ),
        "## Which tokens matter",
        f"{conditions(reached, 'dipr_measure', 'dipr_measure')} Divergence (KL, nats) of the next token's distribution "
        "from dense attention, and the share of tokens read; the two numbers are for SQuAD's contexts and for reviews.",
        table(["attends to", *(f"{tokens(n)}: read, divergence" for n in LENGTHS[1:])], _measure_rows(reached)),
        "![divergence over tokens read](../dipr_measure.svg)",
    )


def _place(row: Row) -> str:
    return f"{tokens(row.get('context') or row['length'])} x {row['batch']}"


def _engine_rows(rows: list[Row]) -> list[list[str]]:
    """The last run of each configuration, the newest configuration first."""
    columns = ("machine", "model", "layers", "topics", "context", "batch")
    pairs: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        pairs.setdefault(tuple(row[name] for name in columns), {})[row["backend"]] = row
    whole = [pair for pair in pairs.values() if {"FLASH_ATTN", "dipr"} <= set(pair)]
    return [_engine_row(pair["FLASH_ATTN"], pair["dipr"]) for pair in sorted(whole, key=_newest, reverse=True)]


def _newest(pair: dict[str, Row]) -> str:
    return pair["dipr"]["time"]


def _engine_row(dense: Row, row: Row) -> list[str]:
    place = [_place(row), _chip(row["machine"]), row["layers"], row["topics"], row["commit"]]
    speeds = [f"{fixed(line['ms_a_token'], 2)} ms" for line in (dense, row)]
    return [*place, *speeds, times(row["speed_up"]), _listed(row)]


def _listed(row: Row) -> str:
    return "dense" if row["listed"] == "1.0" else percent(row["listed"])


def _chip(machine: str) -> str:
    return machine.replace("1 x NVIDIA ", "").split(" ")[0]


def _layer_rows(rows: list[Row]) -> list[list[str]]:
    made = []
    for length, batch in sorted({(int(row["length"]), int(row["batch"])) for row in rows}):
        lines = [one(rows, length=length, batch=batch, way=way) for way in LAYER_WAYS]
        cells = [f"{fixed(line['us'])} us, {times(line['speed_up'])}" for line in lines]
        made.append([_place(lines[0]), *cells])
    return made


def _answer_rows(rows: list[Row]) -> list[list[str]]:
    made = []
    for trial, name in TRIALS.items():
        lines = {length: one(rows, trial=trial, task="all", length=length) for length in (*LENGTHS, "all")}
        read_share = [percent(lines[length]["read"], 1) for length in (LENGTHS[0], LENGTHS[-1])]
        whole = lines["all"]
        middle, low, high = (_points(whole, name) for name in ("difference", "difference_low", "difference_high"))
        differences = [_points(lines[length], "difference") for length in ("16384", "32768")]
        shown = " to ".join(read_share) if read_share[0] else ""
        made.append([name, shown, f"{middle} ({low} to {high})", *differences, percent(whole["same_output"], 0)])
    return made


def _points(row: Row, column: str) -> str:
    value = fixed(float(row[column]) * 100, 1)
    return value if value.startswith("-") else f"+{value}"


def _measure_rows(rows: list[Row]) -> list[list[str]]:
    made = []
    for trial, name in MEASURED.items():
        cells = []
        for length in LENGTHS[1:]:
            pair = [one(rows, trial=trial, length=length, text=text, commit="8eb19e5") for text in ("squad", "reviews")]
            shares = " / ".join(percent(row["union"]) for row in pair)
            cells.append(f"{shares}, " + " / ".join(fixed(row["kl"], 4) for row in pair))
        made.append([name, *cells])
    return made
