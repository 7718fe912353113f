#!/usr/bin/env python3
"""Decode attention of one layer, side by side: FlashAttention 3 (bf16, and fp8 keys and values), and xformers
where it is there, against the kernels of ``sparse/kernels``, on contexts with the scores of a real model
(``dipr_data.py``).

    dipr_kernels.py [--dump kv.pt] [--cases 1x32768,16x32768,1x131072,4x131072] [--alphas 0.012,0.004]
                    [--block-size 64] [--tuning scan_programs=1056,scan_stages=4 ...]
                    [--csv FILE] [--commit NAME] [--parts]

Llama-3.1-8B's shape, blocks in random order. Nothing is timed whose first request is not right: it is held against
attention in float32, of a scan or a choice of pages over the tokens it says it attends to; fp8 is as it is, its error
stands beside. Times are medians of CUDA graph replays of 20 launches, in microseconds, one after the other over copies
of a small cache, as over the layers of a model, so that the GPU's own cache holds none of it; ``bytes`` counts what a
way must read, as a share of the dense keys and values. ``--parts`` adds the time of each kernel. Each ``--tuning`` adds
scans with other values of ``sparse/kernels/launch.py`` ``Tuning``. "idle" is a scan where no context is long enough:
what it costs dense attention in a CUDA graph that could do both.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from dipr_data import HEAD_SIZE, NUM_HEADS, NUM_KV_HEADS, SCALE, Llama
from lines import check_lines

from vllm_relational.compare.orders import append_csv
from vllm_relational.compare.provenance import code_version, machine
from vllm_relational.sparse import naive
from vllm_relational.sparse.kernels.launch import Batch, Kernels, Tuning
from vllm_relational.sparse.kernels.write import write
from vllm_relational.sparse.pages import PageLayout, Pages, new_cache
from vllm_relational.sparse.settings import DiprSettings

LAUNCHES, REPLAYS = 20, 9
OUT_OF_CACHE = 5 << 30
"""Bytes of keys and values of which every way reads more than the GPU's cache holds: 2% of them."""
FIELDS = (
    "time", "commit", "machine", "data", "batch", "length", "block", "way", "us", "us_10th", "us_90th", "speed_up",
    "bytes", "tokens_listed", "error",
)  # fmt: skip
LISTING = ("scan", "topk_pages")
PAGES = (512, 2048)


def paged(context: Any, block_size: int) -> tuple[torch.Tensor, Pages, torch.Tensor]:
    """A context's keys and values in blocks at random, quantised: the cache, its parts, and the block table."""
    batch, heads, length, _ = context.key.shape
    layout = PageLayout(block_size, HEAD_SIZE, torch.bfloat16)
    per_request = length // block_size
    cache = new_cache(layout, batch * per_request + 1, heads, "cuda")
    pages = layout.views(cache)
    table = (torch.randperm(batch * per_request, device="cuda").int() + 1).view(batch, per_request)
    within = torch.arange(block_size, device="cuda")
    for request in range(batch):
        slots = table[request].long()[:, None] * block_size + within
        keys, values = (given[request].transpose(0, 1).bfloat16() for given in (context.key, context.value))
        write(pages, keys, values, slots.flatten())
    return cache, pages, table


# ------------------------------------------------------------------------------------------------------- what runs
def flash_attention(batch: Batch, fp8: bool) -> Callable[[], torch.Tensor]:
    """FlashAttention 3 as vLLM calls it in a decode graph, over a cache in vLLM's default layout."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func, get_scheduler_metadata

    requests, length = batch.lens.shape[0], int(batch.lens.max())
    dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
    cache = batch.pages.key_value.transpose(1, 2).contiguous().to(dtype)
    key, value = cache[..., :HEAD_SIZE], cache[..., HEAD_SIZE:]
    query, output = batch.query.to(dtype), torch.empty_like(batch.query)
    starts = torch.arange(requests + 1, dtype=torch.int32, device="cuda")
    one = torch.ones(requests, NUM_KV_HEADS, device="cuda")
    scales = {"q_descale": one, "k_descale": one, "v_descale": one} if fp8 else {}
    plan = get_scheduler_metadata(
        batch_size=requests, max_seqlen_q=1, max_seqlen_k=length, num_heads_q=NUM_HEADS, num_heads_kv=NUM_KV_HEADS,
        headdim=HEAD_SIZE, cache_seqlens=batch.lens, qkv_dtype=dtype, cu_seqlens_q=starts,
        page_size=batch.pages.layout.block_size, causal=True, window_size=(-1, -1), num_splits=32,
    )  # fmt: skip

    def run() -> torch.Tensor:
        flash_attn_varlen_func(
            q=query, k=key, v=value, out=output, cu_seqlens_q=starts, max_seqlen_q=1, seqused_k=batch.lens,
            max_seqlen_k=length, softmax_scale=SCALE, causal=True, window_size=[-1, -1],
            block_table=batch.block_table, scheduler_metadata=plan, fa_version=3, num_splits=32, **scales,
        )  # fmt: skip
        return output

    return run


def xformers_attention(batch: Batch, context: Any) -> Callable[[], torch.Tensor]:
    """xformers' dense decode, by the operator that it chooses, over contexts in one piece: no operator of its wheels
    takes blocks of 16."""
    import xformers
    from xformers.ops import fmha

    if not xformers._has_cpp_library:
        raise ImportError("its CUDA library cannot be loaded: python -m xformers.info")
    heads = NUM_HEADS // NUM_KV_HEADS
    query = context.query.unflatten(1, (NUM_KV_HEADS, heads))[:, None]
    key, value = (
        part.transpose(1, 2)[:, :, :, None].expand(-1, -1, -1, heads, -1) for part in (context.key, context.value)
    )

    def run() -> torch.Tensor:
        return fmha.memory_efficient_attention(query, key, value, scale=SCALE).view_as(batch.query)

    run()
    return run


def kernels(batch: Batch, settings: DiprSettings, tuning: Tuning | None = None) -> Kernels:
    """Scratch for one batch."""
    return Kernels(
        settings, num_heads=NUM_HEADS, num_kv_heads=NUM_KV_HEADS, head_size=HEAD_SIZE, scale=SCALE,
        max_reqs=batch.lens.shape[0], max_seq_len=int(batch.lens.max()), group=batch.pages.layout.group,
        device="cuda", tuning=tuning,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- right, then fast
def error(batch: Batch, context: Any, made: Kernels | None, method: str, output: torch.Tensor) -> float:
    """Greatest difference from float32 attention of the first request; of LISTING ways, to the tokens they listed."""
    key, value = context.key[0].float(), context.value[0].float()
    rule: naive.Rule = naive.Dense()
    if method in LISTING:
        assert made is not None
        kept = torch.zeros(NUM_KV_HEADS, key.shape[1], dtype=torch.bool, device="cuda")
        start, end = naive.Window(made.settings.sinks, made.settings.recent, made.group).body(key.shape[1])
        kept[:, :start] = kept[:, end:] = True
        for head, tokens in enumerate(made.listed(batch.lens.tolist(), 0)):
            kept[head, tokens] = True
        rule = naive.KnownTokens(kept.repeat_interleave(NUM_HEADS // NUM_KV_HEADS, 0))
        if method == "topk_pages":
            query = batch.query[0].float()
            products = (query.view(NUM_KV_HEADS, -1, HEAD_SIZE) @ key.transpose(1, 2)).flatten(0, 1)
            choice = naive.TopPages(made.settings.top_tokens).choose(
                query, key, products, SCALE, naive.Window(group=made.group)
            )
            rule = naive.Chosen(rule.kept, choice.estimates)
    tail = made is not None and method in LISTING and made.settings.counts_the_rest
    window = naive.Window(group=made.group) if made is not None else None
    right = naive.decode(batch.query[0].float(), key, value, SCALE, rule, window, tail=tail)
    return float((output[0].float() - right.output).abs().max())


def allowed(batch: Batch, context: Any, made: Kernels | None, method: str, name: str) -> float:
    """The difference that a way may have: rounding, and for ``v_skip`` about what DIPR with a tail has."""
    if method != "v_skip":
        return float("inf") if "fp8" in name else 0.03
    assert made is not None
    key, value, query = context.key[0].float(), context.value[0].float(), batch.query[0].float()
    rule, window = naive.Dipr(made.settings.beta(SCALE, key.shape[1])), naive.Window(group=made.group)
    dense = naive.decode(query, key, value, SCALE, naive.Dense())
    sparse = naive.decode(query, key, value, SCALE, rule, window, tail=True)
    return 0.03 + 1.5 * float((sparse.output - dense.output).abs().max())


def microseconds(runs: list[Callable[[], Any]]) -> list[float]:
    """Of one launch, by replay, one after the other."""
    for run in runs:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in range(LAUNCHES):
            runs[launch % len(runs)]()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / LAUNCHES)
    return sorted(times)


def parts(runs: list[Callable[[], Any]]) -> dict[str, float]:
    """Microseconds of each kernel of one launch."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for launch in range(LAUNCHES):
            runs[launch % len(runs)]()
        torch.cuda.synchronize()
    kernels = [each for each in profiled.key_averages() if "kernel" in each.key]
    return {each.key: round(each.device_time_total / LAUNCHES, 1) for each in kernels}


def bytes_read(batch: Batch, made: Kernels, method: str) -> float:
    """Of the keys and values, the share that a way reads; the index counted."""
    layout, tokens = batch.pages.layout, int(batch.lens.sum()) * NUM_KV_HEADS
    dense = 2 * layout.head_size * layout.dtype.itemsize
    if method == "v_skip":
        counts = made.counts[: batch.lens.shape[0] * NUM_KV_HEADS * made.splits(batch.lens.shape[0])]
        return 0.5 + 0.5 * float(counts.sum()) / tokens
    window = made.settings.sinks + made.settings.recent
    body = tokens - window * batch.lens.shape[0] * NUM_KV_HEADS
    there, listed = made.statistics[:2].tolist()
    listed = body * listed / max(there, 1) + tokens - body
    if method == "topk_pages":
        return (listed * dense + body * layout.outline_bytes) / (tokens * dense)
    return (listed * dense + body * (layout.index_bytes + layout.head_size / layout.group)) / (tokens * dense)


Run = Callable[[], Any]


def ways(
    batches: list[Batch], context: Any, alphas: list[float], tunings: list[str]
) -> Iterator[tuple[str, str, Kernels | None, list[Run]]]:
    """Name, method, kernels and a launch for each batch."""
    for fp8 in (False, True):
        try:
            runs = [flash_attention(batch, fp8) for batch in batches]
            yield "FlashAttention 3" + (", fp8" if fp8 else ""), "flash", None, runs
        except (ImportError, RuntimeError) as problem:
            print(f"  FlashAttention{' fp8' if fp8 else ''}: {problem}", file=sys.stderr)
    try:
        yield "xformers", "xformers", None, [xformers_attention(batches[0], context)]
    except (ImportError, RuntimeError) as problem:
        print(f"  xformers: {' '.join(str(problem).split())}", file=sys.stderr)
    for alpha in alphas:
        for method in ("v_skip", "scan"):
            made = kernels(batches[0], DiprSettings(alpha=alpha))
            yield f"{method} {alpha:g}", method, made, launches(made, method, batches)
        for text in tunings:
            made = kernels(batches[0], DiprSettings(alpha=alpha), read_tuning(text))
            yield f"scan {alpha:g} {text}", "scan", made, launches(made, "scan", batches)
    for top_tokens in PAGES:
        made = kernels(batches[0], DiprSettings(method="topk_pages", top_tokens=top_tokens))
        yield f"pages {top_tokens}", "topk_pages", made, launches(made, "topk_pages", batches)
    for text in ["", *tunings]:
        made = kernels(batches[0], DiprSettings(), read_tuning(text))
        none = [dataclasses.replace(batch, lens=torch.zeros_like(batch.lens)) for batch in batches]
        yield f"idle {text}", "idle", made, launches(made, "scan", none)


def launches(made: Kernels, method: str, batches: list[Batch]) -> list[Run]:
    return [functools.partial(getattr(made, method), batch) for batch in batches]


def read_tuning(text: str) -> Tuning:
    """``scan_programs=1056,scan_stages=4``"""
    pairs = (part.split("=") for part in text.split(",") if part)
    return Tuning(**{name: int(value) for name, value in pairs})


def measure(args: argparse.Namespace, data: Llama, requests: int, length: int) -> Iterator[dict[str, Any]]:
    """The lines of one case."""
    context = data.context(length, requests)
    cache, pages, table = paged(context, args.block_size)
    lens = torch.full((requests,), length, dtype=torch.int32, device="cuda")
    rows = torch.arange(requests, dtype=torch.int32, device="cuda")
    batches = [Batch(context.query.contiguous(), pages, table, lens, rows, torch.empty_like(context.query))]
    for _ in range(1, -(-OUT_OF_CACHE // pages.key_value.numel() // pages.layout.dtype.itemsize)):
        copied = pages.layout.views(cache.clone())
        batches.append(dataclasses.replace(batches[0], pages=copied, output=torch.empty_like(context.query)))
    batch, base = batches[0], None
    for name, method, made, runs in ways(batches, context, args.alphas, args.tuning):
        found = runs[0]()
        if method != "idle":
            off = error(batch, context, made, method, found if found is not None else batch.output)
            limit = allowed(batch, context, made, method, name)
            if not off < limit:
                print(f"  {name}: off by {off:.4f}, not timed", file=sys.stderr)
                continue
        times = microseconds(runs)
        median = times[len(times) // 2]
        base = base or median
        share = bytes_read(batch, made, method) if made is not None else 0.5 if "fp8" in name else 1.0
        listed = made.statistics[:2].tolist() if made is not None and method in LISTING else [0, 0]
        yield {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": args.commit,
            "machine": machine(),
            "data": "real scores" if args.dump else "synthetic",
            "batch": requests,
            "length": length,
            "block": args.block_size,
            "way": name,
            "us": round(median, 1),
            "us_10th": round(times[1], 1),
            "us_90th": round(times[-2], 1),
            "speed_up": round(base / median, 2) if method != "idle" else "",
            "bytes": round(share, 3) if method != "idle" else "",
            "tokens_listed": round(listed[1] / max(listed[0], 1), 4),
            "error": round(off, 5) if method != "idle" else "",
        }
        if args.parts and made is not None:
            print(f"    {name}: {parts(runs)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--cases", default="1x32768,16x32768,1x131072,4x131072")
    parser.add_argument("--alphas", type=lambda text: [float(part) for part in text.split(",")], default=[0.012, 0.004])
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--tuning", action="append", default=[])
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--commit", default=None, help="where the code was copied without its history")
    parser.add_argument("--parts", action="store_true")
    args = parser.parse_args()
    check_lines(parser, args.csv, FIELDS)
    args.commit = args.commit or code_version()
    data = Llama(args.dump)
    print(f"{'batch':>5}{'length':>8}  {'way':22}{'us':>8}{'speed-up':>9}{'bytes':>7}{'listed':>8}{'error':>9}")
    for case in args.cases.split(","):
        requests, length = map(int, case.split("x"))
        for line in measure(args, data, requests, length):
            print(
                f"{requests:5}{length:8}  {line['way']:22}{line['us']:8}{line['speed_up']:9}{line['bytes']:7}"
                f"{line['tokens_listed']:8}{line['error']:9}",
                flush=True,
            )
            if args.csv:
                append_csv(args.csv, [line])
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
