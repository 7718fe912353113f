#!/usr/bin/env python3
"""Stored contexts in vLLM: first whether they are right, then the time to the first token, on one GPU.

    context_vllm.py [--contexts 32768,131072] [--layers 32] [--rounds 3] [--memory-gib 24] [--root FOLDER]
                    [--only check|sparse|speed] [--kinds plain,store,load] [--csv FILE] [--commit NAME] [--cpu]

The check runs small random models, every engine in a process of its own on one folder: a second process must give the
answers of the first and load all whole blocks of every prompt; then blocks are flipped, cut and removed, and it must
compute from there; an engine of DIPR attention must load nothing of the dense one's, and all of its own. In bf16 the
sums of a matrix product depend on how many tokens are computed at once. So answers of the second process are held
against those of the first that came from its prefix cache, where both compute equally many tokens: they must be equal.
The others, where one engine computes more tokens than the other, are counted; each that differs is printed as its gap:
how much more likely, in nats, the first engine had found its own token.

Then times, of Llama-3.1-8B's shape with random weights, of an answer of one token to a context and 7 tokens more:

    recompute    no prefix cache, no connector
    gpu          from vLLM's prefix cache on the GPU
    store        computed while blocks go to CPU memory, and from there to the disk
    cpu          from vLLM's tier in CPU memory
    disk         by another process from our files, which the kernel still holds in its page cache
    disk, cold   likewise, after the kernel was asked to drop them

``--cpu`` tries all of it where vLLM runs on a CPU, with a tiny model: there is no tier in CPU memory, and times mean
nothing. What is done is printed at once; the table comes last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dipr_process import ROOT, finish_part, in_own_process, make_known, write_whole
from dipr_random_model import LLAMA_8B, SMALL, random_tokens

TINY = {**SMALL, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 2000}
DIPR = {"method": "scan", "alpha": 0.02, "dense_below": 64, "dense_layers": 0, "sinks": 16, "recent": 64}
LOGIT_STD, TOPICS = 3.0, 12
FILE_TOKENS = 64  # on a GPU, see vllm_tier; on a CPU a file is a block
GIB = 1 << 30
FIELDS = (
    "time", "commit", "machine", "model", "layers", "case", "context", "ttft_ms", "fastest", "slowest", "rounds",
    "speed_up", "computed", "loaded", "gib", "gib_a_second",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- in the child
def start(options: argparse.Namespace, config: dict[str, Any], contexts: bool, **arguments: Any) -> Any:
    """An engine with random weights; ``contexts``: which are kept."""
    from vllm import LLM

    from vllm_relational.context.vllm_arguments import context_arguments

    if contexts:
        memory = options.memory_gib if options.part == "speed" else 2.0
        arguments |= context_arguments(options.root, options.cpu, memory_gib=memory)
        arguments["kv_transfer_config"]["kv_connector_extra_config"]["weights"] = f"drawn, {config['hidden_size']}"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        begin = time.perf_counter()
        llm = LLM(
            folder, load_format="dummy", dtype="float32" if options.cpu else "bfloat16", skip_tokenizer_init=True,
            seed=0, enforce_eager=True, worker_extension_cls="dipr_extension.Extension", **arguments,
        )  # fmt: skip
        llm.collective_rpc("draw", args=(LOGIT_STD, TOPICS))
    print(f"  engine started in {time.perf_counter() - begin:.0f} s", flush=True)
    return llm


def ask(llm: Any, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
    """One after the other: answers with the most likely tokens at every place, and what was not computed."""
    from vllm import SamplingParams

    from vllm_relational.context.vllm_report import loaded_of

    parameters = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, logprobs=8)
    found: dict[str, Any] = {"answers": [], "scored": [], "cached": [], "loaded": []}
    for prompt in prompts:
        (output,) = llm.generate([{"prompt_token_ids": prompt}], parameters, use_tqdm=False)
        told = loaded_of(output.kv_transfer_params)
        found["answers"].append(list(output.outputs[0].token_ids))
        places = output.outputs[0].logprobs
        found["scored"].append([[[token, each.logprob] for token, each in place.items()] for place in places])
        found["cached"].append(output.num_cached_tokens - told.lost)
        found["loaded"].append(told.tokens)
    return found


def stop(llm: Any) -> float:
    """Seconds until the engine was gone, with what was on its way to the disk stored."""
    begin = time.perf_counter()
    llm.llm_engine.engine_core.shutdown(timeout=300)
    return time.perf_counter() - begin


def check_prompts(options: argparse.Namespace, whole: int) -> list[list[int]]:
    """whole: tokens of a file."""
    longest = (200 if options.cpu else 6000) // whole * whole
    lengths = [whole - 1, whole, whole + 1, 2 * whole + 5, longest // 2 // whole * whole + 9, longest, longest + 1]
    lengths += [longest - 3, longest + whole // 2]
    vocabulary = (TINY if options.cpu else SMALL)["vocab_size"]
    return [random_tokens(number, length, vocabulary, TOPICS) for number, length in enumerate(lengths)]


def check(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Answers of one engine: cold, as far as nobody stored them, and from its own prefix cache."""
    block = 32 if options.cpu else 16
    sparse: dict[str, Any] = {
        "attention_backend": "CUSTOM",
        "worker_cls": "vllm_relational.vllm_ext.worker.Worker",
        "additional_config": {"relational": {"dipr": DIPR}},
    }
    exact: dict[str, Any] = {
        "scheduler_cls": "vllm_relational.vllm_ext.scheduler.RelationalScheduler",
        "additional_config": {"relational": {"order": "arrival", "token_exact": True}},
    }
    more = sparse if kind == "dipr" else exact if kind == "exact" else {}
    room = {"kv_cache_memory_bytes": GIB // 4} if options.cpu else {"gpu_memory_utilization": 0.3}
    llm = start(
        options, TINY if options.cpu else SMALL, True, max_model_len=8192, max_num_seqs=8, block_size=block,
        max_num_batched_tokens=2048, **room, **more,
    )  # fmt: skip
    whole, tokens = (block, 4) if options.cpu else (FILE_TOKENS, 16)
    prompts = check_prompts(options, whole)
    found = {"block": whole, "lengths": [len(prompt) for prompt in prompts], "first": ask(llm, prompts, tokens)}
    found["again"] = ask(llm, prompts, tokens)
    if kind == "exact":
        reset(llm, not options.cpu)
        ask(llm, prompts, tokens)  # what is behind a block that was missing is looked at only now
        reset(llm, not options.cpu)
        found["mended"] = ask(llm, prompts, tokens)
        # Leaves a long one inside a block.
        inside = prompts[-3][: (4 if options.cpu else 200) * block + 7]
        found["inside"] = ask(llm, [[*inside, 5, 6, 7]], 4)
        found["expected_inside"] = len(inside)
    found["stopped_s"] = stop(llm)
    return found


def speed(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Times of one engine: ``plain`` without a connector, ``store`` the first with one, ``load`` the next."""
    base = TINY if options.cpu else LLAMA_8B
    config = {**base, "num_hidden_layers": options.layers, "max_position_embeddings": max(options.contexts) + 1024}
    room = {"kv_cache_memory_bytes": GIB} if options.cpu else {"gpu_memory_utilization": 0.85}
    llm = start(
        options, config, kind != "plain", max_model_len=max(options.contexts) + 1024, max_num_seqs=4,
        max_num_batched_tokens=8192, **room,
    )  # fmt: skip
    cases: list[dict[str, Any]] = []
    first_token(llm, random_tokens(-5, min(2048, *options.contexts), config["vocab_size"], TOPICS), True)
    measured = {"plain": [plain], "store": [store], "load": [warm, cold]}[kind]
    for measure, context in itertools.product(measured, options.contexts):
        prompt = random_tokens(context, context, config["vocab_size"], TOPICS)
        prompt += random_tokens(-1, 7, config["vocab_size"], TOPICS)
        for case in measure(llm, options, prompt):
            case |= {"context": context}
            cases.append(case)
            shown = ", ".join(f"{ms:,.0f}" for ms in case["ms"])
            told = f"{case['computed']:,} computed, {case['loaded']:,} loaded"
            print(f"  {case['case']}, {context:,}: {shown} ms; {told}", flush=True)
            write_whole(options.out, {"cases": cases})
    seconds = stop(llm)
    print(f"  stopped in {seconds:.1f} s", flush=True)
    return {"cases": cases, "stopped_s": seconds}


def reset(llm: Any, connector: bool) -> None:
    """Forget the prefix cache; connector: and what is in CPU memory."""
    for _ in range(100):
        if llm.reset_prefix_cache(reset_connector=connector):
            return
        time.sleep(0.1)  # blocks of a request that has just ended
    raise RuntimeError("the prefix cache cannot be reset")


def first_token(llm: Any, prompt: list[int], anew: bool, connector: bool = False) -> dict[str, Any]:
    """One answer of one token. anew: after ``reset``."""
    from vllm import SamplingParams

    from vllm_relational.context.vllm_report import loaded_of

    if anew:
        reset(llm, connector)
    parameters = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
    begin = time.perf_counter()
    (output,) = llm.generate([{"prompt_token_ids": prompt}], parameters, use_tqdm=False)
    told, ms = loaded_of(output.kv_transfer_params), 1000 * (time.perf_counter() - begin)
    computed = len(prompt) - output.num_cached_tokens + told.lost
    return {"ms": ms, "computed": computed, "loaded": told.tokens, "token": output.outputs[0].token_ids[0]}


def case_of(name: str, rounds: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    last = rounds[-1]
    facts = {"computed": last["computed"], "loaded": last["loaded"], "tokens": [each["token"] for each in rounds]}
    return {"case": name, "ms": [each["ms"] for each in rounds], **facts, **more}


def plain(llm: Any, options: argparse.Namespace, prompt: list[int]) -> Iterator[dict[str, Any]]:
    rounds = 1 if len(prompt) > 100_000 else 2
    yield case_of("recompute", [first_token(llm, prompt, True) for _ in range(rounds)])
    yield case_of("gpu", [first_token(llm, prompt, False) for _ in range(options.rounds)])


def store(llm: Any, options: argparse.Namespace, prompt: list[int]) -> Iterator[dict[str, Any]]:
    before, begin = stored_bytes(options), time.perf_counter()
    case = case_of("store", [first_token(llm, prompt, True)])
    size = settled_bytes(options)
    written = (size - before) / GIB
    yield {**case, "gib": written, "gib_a_second": written / max(1e-9, time.perf_counter() - begin)}
    if not options.cpu:
        yield case_of("cpu", [first_token(llm, prompt, True) for _ in range(options.rounds)])


def warm(llm: Any, options: argparse.Namespace, prompt: list[int]) -> Iterator[dict[str, Any]]:
    # Our connector on a CPU has no memory to forget.
    yield case_of("disk", [first_token(llm, prompt, True, not options.cpu) for _ in range(options.rounds)])


def cold(llm: Any, options: argparse.Namespace, prompt: list[int]) -> Iterator[dict[str, Any]]:
    drop_from_page_cache(options)
    yield case_of("disk, cold", [first_token(llm, prompt, True, not options.cpu)])


def stored_bytes(options: argparse.Namespace) -> int:
    return sum(path.stat().st_size for path in options.root.rglob("*.kv"))


def settled_bytes(options: argparse.Namespace) -> int:
    """Once it does not grow any more."""
    size, since = stored_bytes(options), time.perf_counter()
    while time.perf_counter() - since < 4.0:
        time.sleep(0.2)
        if (now := stored_bytes(options)) != size:
            size, since = now, time.perf_counter()
    return size


def drop_from_page_cache(options: argparse.Namespace) -> None:
    for path in options.root.rglob("*.kv"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


# ------------------------------------------------------------------------------------------------- in the driver
def run_checks(options: argparse.Namespace, known: Path) -> list[str]:
    """What is wrong, in words."""
    wrong: list[str] = []

    def part(kind: str) -> dict[str, Any]:
        found = in_own_process(__file__, "check", kind, known, options.timeout)
        if "error" in found:
            raise RuntimeError(f"check, {kind}: {found['error']}")
        return found

    def hold(what: str, true: bool) -> None:
        print(f"  {'ok' if true else 'WRONG'}: {what}", flush=True)
        wrong.extend([] if true else [what])

    if options.only == "sparse":
        sparse, again = part("dipr"), part("dipr")
        check_sparse(hold, sparse, again)
        return wrong
    one = part("first")
    hold("the first process loads nothing", not any(one["first"]["loaded"]))
    hold("one layout", len(layouts(options)) == 1)
    sparse = part("dipr")
    hold("DIPR loads nothing of the dense engine's", not any(sparse["first"]["loaded"]) and len(layouts(options)) == 2)
    two = part("second")
    whole = [length // two["block"] * two["block"] for length in two["lengths"]]
    hold("the second process loads all whole blocks", two["first"]["loaded"] == two["first"]["cached"] == whole)
    compare(hold, one, two["first"], "second process")
    damaged = damage(layout_of(options, sparse=False))
    three = part("exact")  # with our scheduler and token-exact reuse
    loaded = sum(three["first"]["loaded"])
    hold(f"with {damaged} of the blocks damaged, {loaded:,} of {sum(whole):,} tokens load", 0 < loaded < sum(whole))
    compare(hold, one, three["first"], "damaged blocks computed again")
    hold("what was damaged was stored again", three["mended"]["loaded"] == whole)
    inside = three["inside"]["cached"][0]
    hold(f"token-exact reuse beside contexts: {inside} cached", inside == three["expected_inside"])
    check_sparse(hold, sparse, part("dipr"))
    return wrong


def check_sparse(hold: Any, sparse: dict[str, Any], again: dict[str, Any]) -> None:
    whole = [length // again["block"] * again["block"] for length in again["lengths"]]
    hold("DIPR loads its own", again["first"]["loaded"] == whole)
    compare(hold, sparse, again["first"], "second process, DIPR")


def compare(hold: Any, one: dict[str, Any], found: dict[str, Any], name: str) -> None:
    """Answers against those of the first process: from its prefix cache where equally many tokens were computed."""
    same = [
        place
        for place, (cached, own) in enumerate(zip(found["cached"], one["again"]["cached"], strict=True))
        if cached == own
    ]
    equal = sum(found["answers"][place] == one["again"]["answers"][place] for place in same)
    hold(f"{name}: {equal} of {len(same)} answers equal where equally many tokens are computed", equal == len(same))
    gaps = [
        gap
        for place in range(len(found["answers"]))
        if (gap := gap_of(one["first"], found["answers"], place)) is not None
    ]
    own = [
        gap
        for place in range(len(found["answers"]))
        if (gap := gap_of(one["first"], one["again"]["answers"], place)) is not None
    ]
    print(f"  {name}: of {len(found['answers'])} answers, {len(gaps)} differ from the first cold ones, gaps {gaps}; ")
    print(f"    of the first engine's own from its prefix cache, {len(own)}, gaps {own}", flush=True)
    hold(f"{name}: no gap above 0.1 nats", all(gap <= 0.1 for gap in gaps))


def gap_of(cold: dict[str, Any], answers: list[list[int]], place: int) -> float | None:
    """None for equal answers; infinite where the other token was not among the most likely."""
    own, other = cold["answers"][place], answers[place]
    at = next((at for at, pair in enumerate(zip(own, other, strict=True)) if pair[0] != pair[1]), None)
    if at is None:
        return None
    score = dict(map(tuple, cold["scored"][place][at]))
    return round(score[own[at]] - score[other[at]], 3) if other[at] in score else float("inf")


def layouts(options: argparse.Namespace) -> list[Path]:
    return sorted(path.parent for path in (options.root / "vllm-blocks").glob("*/layout.json"))


def layout_of(options: argparse.Namespace, sparse: bool) -> Path:
    (found,) = (path for path in layouts(options) if ("CUSTOM" in (path / "layout.json").read_text()) == sparse)
    return found


def damage(layout: Path) -> int:
    """Every 29th block: a bit flipped, the end cut off, or removed."""
    files = sorted(layout.rglob("*.kv"))[::29]
    for place, file in enumerate(files):
        if place % 3 == 0:
            with open(file, "r+b") as opened:
                opened.seek(random.Random(place).randrange(file.stat().st_size))
                byte = opened.read(1)
                opened.seek(-1, 1)
                opened.write(bytes([byte[0] ^ 16]))
        elif place % 3 == 1:
            os.truncate(file, file.stat().st_size // 2)
        else:
            file.unlink()
    return len(files)


def run_speed(options: argparse.Namespace, known: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Lines of the table, and what failed."""
    from vllm_relational.compare.orders import append_csv

    lines: list[dict[str, Any]] = []
    failed: list[str] = []
    tokens: dict[int, int] = {}
    recompute: dict[int, float] = {}
    for kind in options.kinds:
        found = in_own_process(__file__, "speed", kind, known, options.timeout)
        failed += [f"speed, {kind}: {found['error']}"] if "error" in found else []
        fresh = []
        for case in found.get("cases", []):
            context = case["context"]
            if case["case"] == "recompute":
                recompute[context] = min(case["ms"])
            if case["case"] in ("gpu", "cpu", "store"):
                tokens.setdefault(context, case["tokens"][-1])
            if case["case"] in ("cpu", "disk", "disk, cold") and set(case["tokens"]) != {tokens.get(context)}:
                failed.append(f"{case['case']}, {context:,}: first token {case['tokens']}, not {tokens.get(context)}")
            fresh.append(line_of(options, case, recompute.get(context)))
        if options.csv and fresh:
            append_csv(options.csv, fresh)
        lines += fresh
    return lines, failed


def line_of(options: argparse.Namespace, case: dict[str, Any], recompute: float | None) -> dict[str, Any]:
    median = statistics.median(case["ms"])
    model = "tiny" if options.cpu else "Llama-3.1-8B shape"
    values = (
        datetime.now(UTC).isoformat(timespec="seconds"), *options.where, model, options.layers, case["case"],
        case["context"], round(median, 1), round(min(case["ms"]), 1), round(max(case["ms"]), 1), len(case["ms"]),
        round(recompute / median, 1) if recompute else "", case["computed"], case["loaded"],
        round(case["gib"], 2) if "gib" in case else "",
        round(case["gib_a_second"], 2) if "gib_a_second" in case else "",
    )  # fmt: skip
    return dict(zip(FIELDS, values, strict=True))


def where(commit: str | None) -> tuple[str, str]:
    """Commit, or installed version, and machine."""
    from vllm_relational.compare.provenance import code_version, machine

    return code_version() if commit is None else commit, machine()


def report(options: argparse.Namespace) -> int:
    wrong: list[str] = []
    lines: list[dict[str, Any]] = []
    begin, root = time.perf_counter(), options.root
    with tempfile.TemporaryDirectory() as folder:
        make_known(Path(folder))
        if options.only != "speed":
            try:
                wrong = run_checks(options, Path(folder))
            except RuntimeError as error:
                wrong = [str(error)]
            shutil.rmtree(root / "vllm-blocks", ignore_errors=True)
        if options.only in (None, "speed"):
            lines, failed = run_speed(options, Path(folder))
            wrong += failed
    print(f"\n{time.perf_counter() - begin:.0f} s; commit and machine: {', '.join(options.where)}")
    names = {"context": 9, "ttft_ms": 11, "fastest": 11, "slowest": 11, "speed_up": 9, "computed": 10, "loaded": 10}
    print("case".ljust(12) + "".join(name.rjust(width) for name, width in names.items()) + "  GiB/s to the disk")
    for line in lines:
        cells = "".join(f"{line[name]:>{width},}" if line[name] != "" else " " * width for name, width in names.items())
        print(f"{line['case']:12}{cells}  {line['gib_a_second']}")
    for what in wrong:
        print(f"FAILED: {what}")
    print("" if wrong else "all that was checked is right")
    return 1 if wrong else 0


def show_room(options: argparse.Namespace) -> None:
    """What the machine has, as far as it matters here."""
    shared, disk = os.statvfs("/dev/shm"), shutil.disk_usage(options.root)
    print(
        f"contexts in {options.root}: {disk.free / GIB:.0f} GiB free; {os.cpu_count()} cores; /dev/shm: "
        f"{shared.f_bavail * shared.f_frsize / GIB:.1f} GiB free, {options.memory_gib:g} wanted",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-gib", type=float, default=24.0, help="CPU memory of vLLM's tier")
    parser.add_argument("--root", type=Path, help="an empty folder on the disk to measure; a temporary one by default")
    parser.add_argument("--only", choices=["check", "sparse", "speed"], help="sparse: of the checks those of DIPR")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=["plain", "store", "load"])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds a process")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--commit", help="where the code was copied without its history")
    parser.add_argument("--part", choices=["check", "speed"], help=argparse.SUPPRESS)
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.contexts = options.contexts or ([256, 640] if options.cpu else [32768, 131072])
    options.layers = options.layers or (2 if options.cpu else 32)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped benchmark takes its engine along
    sys.path.insert(0, str(ROOT))  # works without an installation too
    if options.part is None:
        from vllm_relational.cli.output import check_csv

        check_csv(options.csv, FIELDS)
        options.where = where(options.commit)
        made = None
        if options.root is None:
            made = options.root = Path(tempfile.mkdtemp(prefix="contexts-"))
            sys.argv += ["--root", str(made)]
        options.root.mkdir(parents=True, exist_ok=True)
        show_room(options)
        try:
            return report(options)
        finally:
            shutil.rmtree(made or options.root / "vllm-blocks", ignore_errors=True)
    part = {"check": check, "speed": speed}[options.part]
    return finish_part(lambda: part(options, options.backend), options.out)


if __name__ == "__main__":
    sys.exit(main())
