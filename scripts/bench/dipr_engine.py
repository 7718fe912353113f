#!/usr/bin/env python3
"""Time per output token of long contexts, FlashAttention against sparse attention, each in a process of its own.

    dipr_engine.py [--model FOLDER] [--contexts 32768,131072] [--batches 1,4,16] [--layers 32] [--logit-std 3]
                   [--topics 12] [--dipr NAME=VALUE ...] [--mode 3] [--backends FLASH_ATTN,FLASH_ATTN-fp8,dipr]
                   [--only check|again|speed] [--csv FILE] [--kernels FILE] [--json FILE] [--commit NAME]

First a check: greedy answers with alpha 0, every context sparse, against those of FLASH_ATTN. In bf16 the sums of a
matrix product depend on the batch, so the answers that FLASH_ATTN changes when the prompts come in reverse order stand
beside. An answer that differs is printed as its gap: how much more likely, in nats, the first of the two had found its
own token than the other's, where they part. ``--model`` is a real model for the check (its own tokenizer, texts of this
repository); without it, a small random one. With ``--only again``: answers at alpha 0.02, each prompt alone, against
those of requests that lose their keys on the way and compute half of the answer again; the same for FLASH_ATTN, whose
sums differ as well.

Then the times. They depend on shapes, and for sparse attention on how many tokens matter: Llama-3.1-8B's shape with
random weights and texts of which a scan lists some share (``dipr_random_model.py`` says how; ``--topics``: the fewer,
the more; what was listed stands beside each time). They say nothing about quality. ``--layers 22`` is a smaller model,
and lets larger batches fit. A case that does not fit in the KV cache is left out, with a line. Contexts are computed
once and then served from the prefix cache; the time per output token is the difference between an answer of many tokens
and one of one token, over their number; median of ``--rounds``. ``--kernels`` names a CSV for the time of every kind of
kernel, by CUPTI, in rounds of their own; launches a token that are not whole numbers come from requests that did not
start in the same step.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dipr_process import ROOT, finish_part, in_own_process, make_known, write_whole
from dipr_random_model import LLAMA_8B, SMALL, random_tokens

STOCK, FP8, SPARSE = "FLASH_ATTN", "FLASH_ATTN-fp8", "dipr"
DOES_NOT_FIT = "does not fit"
EXACT = {"method": "scan", "alpha": 0, "dense_below": 0, "dense_layers": 0, "sinks": 16, "recent": 64}
SHORT = {**EXACT, "alpha": 0.02}
FIELDS = (
    "time", "commit", "machine", "model", "layers", "logit_std", "backend", "settings", "context", "batch",
    "ms_a_token", "fastest", "slowest", "speed_up", "kv_tokens", "prefill_seconds", "listed", "compilation_mode",
    "topics", "rounds", "tokens",
)  # fmt: skip
KERNEL_FIELDS = (
    "commit", "machine", "layers", "backend", "context", "batch", "kernel", "launches_a_token", "us_a_token",
    "compilation_mode", "topics",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- in the child
def start(options: argparse.Namespace, folder: str, dipr: dict[str, Any], **arguments: Any) -> Any:
    from vllm import LLM

    backends: dict[str, dict[str, Any]] = {
        STOCK: {"attention_backend": STOCK},
        FP8: {"attention_backend": STOCK, "kv_cache_dtype": "fp8"},
        SPARSE: {
            "attention_backend": "CUSTOM",
            "worker_cls": "vllm_relational.vllm_ext.worker.Worker",
            "additional_config": {"relational": {"dipr": dipr}},
        },
    }
    graphs = {"compilation_config": {"mode": options.mode, "cudagraph_mode": "FULL_DECODE_ONLY"}}
    arguments |= {"worker_extension_cls": "dipr_extension.Extension", **graphs, **backends[options.backend]}
    llm = LLM(folder, dtype="bfloat16", skip_tokenizer_init=True, seed=0, **arguments)
    (classes,) = llm.collective_rpc("attention")
    print(f"  {options.backend}: {', '.join(classes)}", flush=True)
    if (options.backend == SPARSE) != all(name.startswith("Dipr") for name in classes):
        raise RuntimeError(f"asked for {options.backend}, got {classes}: the log above says why")
    return llm


def generate(llm: Any, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], float]:
    """Answers, and seconds."""
    begin = time.perf_counter()
    answers = run(llm, prompts, max_tokens)
    return [list(answer.token_ids) for answer in answers], time.perf_counter() - begin


def run(llm: Any, prompts: list[list[int]], max_tokens: int, logprobs: int | None = None) -> list[Any]:
    """vLLM's greedy answers."""
    parameters = greedy(max_tokens, logprobs)
    outputs = llm.generate([{"prompt_token_ids": row} for row in prompts], parameters, use_tqdm=False)
    return [output.outputs[0] for output in outputs]


def greedy(max_tokens: int, logprobs: int | None = None) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, logprobs=logprobs)


def generate_scored(llm: Any, prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[list[Any]]]:
    """Answers, and of each at every place the most likely tokens: ``[[token, logarithm of its probability], ...]``."""
    answers = run(llm, prompts, max_tokens, logprobs=8)
    scored = [
        [[[token, each.logprob] for token, each in place.items()] for place in answer.logprobs] for answer in answers
    ]
    return [list(answer.token_ids) for answer in answers], scored


def check_prompts(folder: str, is_real: bool, vocabulary: int, topics: int) -> list[list[int]]:
    """24 prompts of 15 to 6,000 tokens."""
    lengths = [15 + int(5985 * (number / 23) ** 2) for number in range(24)]
    if not is_real:
        return [random_tokens(number, length, vocabulary, topics) for number, length in enumerate(lengths)]
    from transformers import AutoTokenizer

    files = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("vllm_relational/**/*.py")])
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    tokens = AutoTokenizer.from_pretrained(folder).encode(text)
    return [tokens[number * 997 :][:length] for number, length in enumerate(lengths)]


def small_engine(options: argparse.Namespace, dipr: dict[str, Any]) -> tuple[Any, list[list[int]]]:
    """The engine of a check, and its prompts."""
    with tempfile.TemporaryDirectory() as made:
        folder, more = options.model, {}
        if folder is None:
            Path(made, "config.json").write_text(json.dumps(SMALL))
            folder, more = made, {"load_format": "dummy"}
        memory = {"gpu_memory_utilization": 0.5, "max_model_len": 8192, "max_num_batched_tokens": 2048}
        llm = start(options, folder, dipr, max_num_seqs=32, **memory, **more)
        if options.model is None:
            llm.collective_rpc("draw", args=(options.logit_std, options.topics))
        vocabulary = llm.model_config.get_vocab_size()
        return llm, check_prompts(folder, options.model is not None, vocabulary, options.topics)


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Answers of one backend, again with the prompts reversed, and with the prompts cached."""
    llm, prompts = small_engine(options, EXACT)
    answers, scored = generate_scored(llm, prompts, 48)
    llm.reset_prefix_cache()
    reversed_answers = generate(llm, prompts[::-1], 48)[0][::-1]
    cached, _ = generate(llm, prompts, 48)
    stop(llm)
    return {"answers": answers, "scored": scored, "reversed": reversed_answers, "cached": cached}


def again(options: argparse.Namespace) -> dict[str, Any]:
    """Answers of one backend to one prompt at a time, left alone, and preempted in the middle."""
    llm, prompts = small_engine(options, SHORT)
    answers, scored = [], []
    for prompt in prompts:
        llm.reset_prefix_cache()
        answer, places = generate_scored(llm, [prompt], 48)
        answers, scored = answers + answer, scored + places
    interrupted, done = zip(*(generate_interrupted(llm, prompt, 48) for prompt in prompts), strict=True)
    stop(llm)
    if not all(done):
        raise RuntimeError(f"only {sum(done)} of {len(done)} requests were preempted")
    return {"answers": answers, "scored": scored, "interrupted": interrupted}


def generate_interrupted(llm: Any, prompt: list[int], max_tokens: int) -> tuple[list[int], bool]:
    """The answer of a request that is to lose all its keys half-way, and whether it did."""
    llm.reset_prefix_cache()
    llm.llm_engine.add_request("interrupted", {"prompt_token_ids": prompt}, greedy(max_tokens))
    answer: list[int] = []
    interrupted = False
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            answer = list(output.outputs[0].token_ids)
        if len(answer) >= max_tokens // 2 and not interrupted:
            interrupted = llm.reset_prefix_cache(reset_running_requests=True)
    return answer, interrupted


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Times of every case that fits; longest contexts first, so that shorter ones find theirs in the cache."""
    contexts, cases = sorted(options.contexts, reverse=True), []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({**LLAMA_8B, "num_hidden_layers": options.layers}))
        llm = start(
            options, folder, options.dipr, load_format="dummy",
            max_model_len=contexts[0] + 1024, max_num_seqs=max(options.batches), max_num_batched_tokens=8192,
            gpu_memory_utilization=options.memory, enable_prefix_caching=True,
        )  # fmt: skip
        layers = llm.collective_rpc("draw", args=(options.logit_std, options.topics))[0]
        print(f"  {options.backend}: {layers} layers drawn")
        cache = llm.llm_engine.vllm_config.cache_config
        capacity = (cache.num_gpu_blocks - 1) * cache.block_size
        for context in contexts:
            for batch in sorted(options.batches):
                cases.append(case(llm, options, context, batch, capacity))
                write_whole(options.out, {"cases": cases, "kv_tokens": capacity})
        stop(llm)
    return {"cases": cases, "kv_tokens": capacity}


def case(llm: Any, options: argparse.Namespace, context: int, batch: int, capacity: int) -> dict[str, Any]:
    found: dict[str, Any] = {"context": context, "batch": batch}
    if (context + options.tokens + 64) * batch > capacity:
        print(f"  {options.backend}: {batch} x {context:,} do not fit in {capacity:,} tokens", flush=True)
        return {**found, "error": DOES_NOT_FIT}
    try:
        vocabulary = llm.model_config.get_vocab_size()
        # 7 tokens more than whole blocks: a request that finds its context cached has some left to compute.
        end = random_tokens(-1, 7, vocabulary, options.topics)
        prompts = [random_tokens(number, context, vocabulary, options.topics) + end for number in range(batch)]
        _, prefill = generate(llm, prompts, 1)
        times, before = [], llm.collective_rpc("listed")[0]
        for _ in range(options.rounds):
            _, short = generate(llm, prompts, 1)
            _, long = generate(llm, prompts, 1 + options.tokens)
            times.append(1000 * (long - short) / options.tokens)
        listed_by_end = llm.collective_rpc("listed")[0]
    except Exception as error:
        traceback.print_exc()
        return {**found, "error": f"{type(error).__name__}: {error}"}
    there, listed = (now - then for now, then in zip(listed_by_end, before, strict=True))
    found |= {"ms": times, "prefill_seconds": prefill, "listed": listed / there if there else 1.0}
    share = f", {found['listed']:.1%} listed" if there else ""
    print(f"  {options.backend}: {batch} x {context:,}: {statistics.median(times):.2f} ms a token{share}", flush=True)
    if options.kernels:
        try:
            write_kernels(options, found, kernel_times(llm, prompts, options.tokens))
        except Exception as error:  # the times above stay
            traceback.print_exc()
            found["kernels_error"] = f"{type(error).__name__}: {error}"
    return found


def kernel_times(llm: Any, prompts: list[list[int]], tokens: int) -> dict[str, tuple[float, float]]:
    """Launches and microseconds a token, by name of the kernel."""
    seen = []
    for max_tokens in (1, 1 + tokens):
        try:
            llm.collective_rpc("watch")
            generate(llm, prompts, max_tokens)
            seen.append(llm.collective_rpc("watched")[0])
        finally:
            llm.collective_rpc("stop_watching")  # or the cases that follow are timed under it
    once, all_tokens = seen
    return {
        name: tuple((much - few) / tokens for much, few in zip(all_tokens[name], once.get(name, (0, 0.0)), strict=True))
        for name in all_tokens
    }


def write_kernels(options: argparse.Namespace, found: dict[str, Any], kernels: dict[str, tuple[float, float]]) -> None:
    """Append those of 5 microseconds a token and more, the longest first."""
    from vllm_relational.compare.orders import append_csv

    ordered = sorted(kernels.items(), key=lambda item: -item[1][1])
    case_of = (*options.where, options.layers, options.backend, found["context"], found["batch"])
    mode = (options.mode, options.topics)
    lines = [
        dict(zip(KERNEL_FIELDS, (*case_of, kernel, round(launches, 2), round(time_us, 1), *mode), strict=True))
        for kernel, (launches, time_us) in ordered
        if time_us >= 5.0
    ]
    append_csv(options.kernels, lines)


def stop(llm: Any) -> None:
    llm.llm_engine.engine_core.shutdown()


# ------------------------------------------------------------------------------------------------- in the driver
def gaps(one: dict[str, Any], answers: list[list[int]]) -> list[float | None]:
    """Of the answers that differ from those of ``one``, where each first does: how much more likely, in nats, its own
    token was found than the other; None where that one was not among those scored."""
    found = []
    for own, scored, answer in zip(one["answers"], one["scored"], answers, strict=True):
        first = next((at for at, tokens in enumerate(zip(own, answer, strict=True)) if tokens[0] != tokens[1]), None)
        if first is not None:
            score = dict(scored[first])
            other = score.get(answer[first])
            found.append(None if other is None else round(score[own[first]] - other, 3))
    return found


def compare_answers(known: Path, timeout_s: float) -> dict[str, Any]:
    """Gaps of every answer that differs."""
    stock, sparse = (in_own_process(__file__, "check", backend, known, timeout_s) for backend in (STOCK, SPARSE))
    if errors := [each["error"] for each in (stock, sparse) if "error" in each]:
        return {"error": errors}
    return {
        "prompts": len(stock["answers"]),
        "different": gaps(stock, sparse["answers"]),
        "different_of_stock_reversed": gaps(stock, stock["reversed"]),
        "different_when_cached": gaps(sparse, sparse["cached"]),
        "different_of_stock_when_cached": gaps(stock, stock["cached"]),
    }


def compare_interrupted(known: Path, timeout_s: float) -> dict[str, Any]:
    """Gaps of every answer that changes, by backend."""
    found = {backend: in_own_process(__file__, "again", backend, known, timeout_s) for backend in (STOCK, SPARSE)}
    if errors := [each["error"] for each in found.values() if "error" in each]:
        return {"error": errors}
    changed = {name: gaps(each, each["interrupted"]) for name, each in found.items()}
    unlike = gaps(found[STOCK], found[SPARSE]["answers"])
    return {"prompts": len(found[STOCK]["answers"]), "changed_when_interrupted": changed, "unlike_stock": unlike}


def compare_speed(options: argparse.Namespace, known: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Lines of the table, and what failed. FlashAttention comes first, and a backend's lines are in the CSV when it is
    done: a run that is cut short has left something."""
    from vllm_relational.compare.orders import append_csv

    lines: list[dict[str, Any]] = []
    failed: list[str] = []
    stock: dict[tuple[int, int], float] = {}
    for backend in sorted(options.backends, key=lambda name: name != STOCK):
        result = in_own_process(__file__, "speed", backend, known, options.timeout)
        failed += [f"{backend}: {result['error']}"] if "error" in result else []
        timed = []
        for each in result.get("cases", []):
            problems = {each.get("error"), each.get("kernels_error")} - {None, DOES_NOT_FIT}
            failed += [f"{backend}, {each['batch']} x {each['context']:,}: {problem}" for problem in problems]
            if "ms" in each:
                if backend == STOCK:
                    stock[each["context"], each["batch"]] = statistics.median(each["ms"])
                timed.append(line_of(options, backend, each, result["kv_tokens"], stock))
        if options.csv and timed:
            append_csv(options.csv, timed)
        lines += timed
    return lines, failed


def line_of(
    options: argparse.Namespace,
    backend: str,
    found: dict[str, Any],
    kv_tokens: int,
    stock: dict[tuple[int, int], float],
) -> dict[str, Any]:
    """A line of the CSV. stock: milliseconds of FlashAttention by context and batch, as far as they are known."""
    median, base = statistics.median(found["ms"]), stock.get((found["context"], found["batch"]))
    values = (
        datetime.now(UTC).isoformat(timespec="seconds"), *options.where, "Llama-3.1-8B shape",
        options.layers, options.logit_std, backend, json.dumps(options.dipr) if backend == SPARSE else "",
        found["context"], found["batch"], round(median, 3), round(min(found["ms"]), 3), round(max(found["ms"]), 3),
        round(base / median, 3) if base else "", kv_tokens, round(found["prefill_seconds"], 2),
        round(found["listed"], 4), options.mode, options.topics, len(found["ms"]), options.tokens,
    )  # fmt: skip
    return dict(zip(FIELDS, values, strict=True))


def where(commit: str | None) -> tuple[str, str]:
    """Commit, or installed version, and machine."""
    from vllm_relational.compare.provenance import code_version, machine

    return code_version() if commit is None else commit, machine()


def report(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {}
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        make_known(Path(folder))
        if options.only in (None, "check"):
            found["check"] = compare_answers(Path(folder), options.timeout)
        if options.only in (None, "again"):
            found["again"] = compare_interrupted(Path(folder), options.timeout)
        if options.only in (None, "speed"):
            found["speed"], failed = compare_speed(options, Path(folder))
    print(f"\ncheck: {json.dumps(found.get('check'))}\nagain: {json.dumps(found.get('again'))}")
    names = {"context": 9, "batch": 7, "ms a token": 12, "fastest": 9, "slowest": 9, "speed-up": 10, "listed": 8}
    print("backend".ljust(16) + "".join(name.rjust(width) for name, width in names.items()))
    for line in found.get("speed", []):
        print(
            f"{line['backend']:16}{line['context']:>9,}{line['batch']:>7}{line['ms_a_token']:>12}"
            f"{line['fastest']:>9}{line['slowest']:>9}{line['speed_up']:>10}{line['listed']:>8}"
        )
    for line in failed:
        print(f"FAILED: {line}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 1 if failed or any("error" in found.get(part, {}) for part in ("check", "again")) else 0


def check_files(options: argparse.Namespace) -> None:
    """Raise ``RelationalError`` where the files could not be written to when the first engine is done."""
    from vllm_relational.cli.output import check_csv, check_folder
    from vllm_relational.records import RelationalError

    check_folder(options.json)
    if options.csv and options.kernels and options.csv.resolve() == options.kernels.resolve():
        raise RelationalError(f"--csv and --kernels have other columns: {options.csv} cannot be both")
    check_csv(options.csv, FIELDS)
    check_csv(options.kernels, KERNEL_FIELDS)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--contexts", type=numbers, default=[32768, 131072])
    parser.add_argument("--batches", type=numbers, default=[1, 4, 16])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--logit-std", type=float, default=3.0)
    parser.add_argument("--topics", type=int, default=12)
    parser.add_argument("--dipr", type=setting, action="append", default=[])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=400.0, help="seconds a process")
    parser.add_argument("--memory", type=float, default=0.92)
    parser.add_argument("--only", choices=["check", "again", "speed"])
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--kernels", type=Path, help="a CSV for the times of kernels")
    parser.add_argument("--backends", type=lambda text: text.split(","), default=[STOCK, SPARSE], help="to time")
    parser.add_argument("--commit", help="where the code was copied without its history")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mode", type=int, default=0, help="of vLLM's compilation; 3 is its default")
    parser.add_argument("--part", choices=["check", "again", "speed"], help=argparse.SUPPRESS)
    parser.add_argument("--backend", choices=[STOCK, FP8, SPARSE], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.dipr = dict(options.dipr)
    if unknown := set(options.backends) - {STOCK, FP8, SPARSE}:
        parser.error(f"--backends: there is no {', '.join(sorted(unknown))}; known are {STOCK}, {FP8} and {SPARSE}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped benchmark takes its engine along
    sys.path.insert(0, str(ROOT))  # works without an installation too
    options.where = where(options.commit)  # of the code that runs, whatever is committed meanwhile
    if options.part is None:
        from vllm_relational.records import RelationalError

        try:
            check_files(options)
        except RelationalError as error:
            parser.error(str(error))
        return report(options)
    part = {"check": check, "again": again, "speed": speed}[options.part]
    return finish_part(lambda: part(options), options.out)


if __name__ == "__main__":
    sys.exit(main())
