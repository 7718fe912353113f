#!/usr/bin/env python3
"""Do answers over long texts stay right when decode attention reads only some tokens? The same prompts, paired.

    dipr_quality.py MODEL --haystack squad.parquet:context --out FOLDER [--lengths 4096,8192,16384,32768]
        [--samples 100] [--tasks single,kv] [--trials dense,scan:4e-3+est,top:300] [--seconds 540]
    dipr_quality.py MODEL --haystack ... --out FOLDER --engine vllm [--dipr '{"alpha": 0.004}' ...]
    dipr_quality.py --out FOLDER --summary

Tasks: ``recall_tasks.py``. By default a Hugging Face model is prefilled densely, and the last token of the prompt
and the answer are decoded under every trial (``scripts/bench/attention/trial.py``). With ``--engine vllm`` vLLM
answers, densely and, a trial each ``--dipr`` (an object of settings, ``{}`` for the defaults but that contexts of any
length are sparse), by our attention: one engine whose settings change, so that the prompts are computed once. Answers
are appended to ``FOLDER/dipr_answers.csv`` as they come; what is there already is not asked again, so a run that ends
early is continued by the same command. At the end the table,
``dipr_quality.csv`` and a plot are made from all of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dipr_quality_table
import recall_tasks
import torch
from attention.trial import read_trial
from lines import check_lines
from texts import passages

from vllm_relational.sparse.naive import Window

TRIALS = (
    "dense,scan:1e-3+est,scan:4e-3+est,scan:1.2e-2+est,estimated:4e-3+est,dipr:4e-3,top:300,top:300+tail,recent:2048"
)
LENGTHS = "4096,8192,16384,32768"
OVERHEAD = 256  # tokens of the chat template, the question and the cue
FIELDS = ("length", "task", "seed", "trial", "score", "read", "prompt_tokens", "output")


class Book:
    """The answers so far: one line a sample and trial, in a file that only grows."""

    def __init__(self, path: Path) -> None:
        new = not path.exists()
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, FIELDS, lineterminator="\n")
        if new:
            self._writer.writeheader()
            self._file.flush()
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            self.done = {(int(row["length"]), row["task"], int(row["seed"]), row["trial"]) for row in rows}

    def add(self, line: dict[str, object]) -> None:
        self._writer.writerow(line)
        self.done.add((line["length"], line["task"], line["seed"], line["trial"]))

    def flush(self) -> None:
        self._file.flush()


class Prompts:
    """Samples as token ids of the chat template, the cue behind it."""

    def __init__(self, tokenizer, haystack: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.haystack = recall_tasks.Haystack(haystack, self.count)

    def count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def make(self, task: str, seeds: Sequence[int], length: int) -> list[tuple[recall_tasks.Sample, torch.Tensor]]:
        """The samples of the seeds, each with room for its answer: one whose text came out longer than it was counted
        is drawn again for less room. ``ValueError`` where none fits."""
        room = dict.fromkeys(seeds, length - OVERHEAD)
        made: dict[int, tuple[recall_tasks.Sample, torch.Tensor]] = {}
        while missing := [seed for seed in seeds if seed not in made]:
            samples = [recall_tasks.make(task, seed, room[seed], self.haystack, self.count) for seed in missing]
            ids = self.tokenizer([self.text(each) for each in samples], add_special_tokens=False)["input_ids"]
            for seed, sample, tokens in zip(missing, samples, ids, strict=True):
                excess = len(tokens) + recall_tasks.MAX_TOKENS[task] - length
                if excess <= 0:
                    made[seed] = sample, torch.tensor(tokens)
                room[seed] -= max(excess, 0)
                if room[seed] <= 0:
                    raise ValueError(f"{task}: no prompt with room for its answer fits in {length} tokens")
        return [made[seed] for seed in seeds]

    def text(self, sample: recall_tasks.Sample) -> str:
        said = [{"role": "user", "content": sample.prompt}]
        started: str = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return started + sample.cue


def rounds(args: argparse.Namespace, book: Book, trials: Sequence[str]) -> Iterator[tuple[int, str, list[int]]]:
    """Length, task and seeds of each batch that still lacks answers, so that every task has some before any has all."""
    for length in args.lengths:
        size = max(min(args.batch_tokens // length, args.samples), 1)
        for start in range(0, args.samples, size):
            for task in args.tasks:
                seeds = range(start, min(start + size, args.samples))
                todo = [seed for seed in seeds if any((length, task, seed, each) not in book.done for each in trials)]
                if todo:
                    yield length, task, todo


Ask = Callable[[Sequence[torch.Tensor], str], dict[str, tuple[list[str], float]]]
"""Prompts and their task to each trial's outputs and share of the body read."""


def run(args: argparse.Namespace, prompts: Prompts, book: Book, trials: Sequence[str], ask: Ask) -> None:
    started = time.perf_counter()
    for length, task, seeds in rounds(args, book, trials):
        if args.seconds and time.perf_counter() - started > args.seconds:
            print(f"out of time after {args.seconds:.0f} s at {length} tokens: the same command continues from there")
            return
        begun = time.perf_counter()
        made = prompts.make(task, seeds, length)
        outputs = ask([ids for _, ids in made], task)
        for trial, (texts, read) in outputs.items():
            for seed, (sample, ids), text in zip(seeds, made, texts, strict=True):
                if (length, task, seed, trial) in book.done:
                    continue
                about = {"length": length, "task": task, "seed": seed, "trial": trial, "output": text}
                right = round(recall_tasks.score(sample, text), 4)
                book.add({**about, "score": right, "read": round(read, 5), "prompt_tokens": len(ids)})
        book.flush()
        print(f"# {length} {task} x {len(seeds)}: {time.perf_counter() - begun:.1f} s", flush=True)


# --------------------------------------------------------------------------------------------------------- engines
def hugging_face(args: argparse.Namespace, tokenizer) -> Ask:
    from dipr_decode import Decoder
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16, attn_implementation="sdpa")
    trials = [read_trial(word) for word in args.trials]
    window = Window(args.sinks, args.recent)
    decoder = Decoder(model.to(args.device).eval(), trials, window, args.dense_layers)
    stops = stop_tokens(model, tokenizer)

    def ask(prompts: Sequence[torch.Tensor], task: str) -> dict[str, tuple[list[str], float]]:
        try:
            found = decoder.decode(prompts, recall_tasks.MAX_TOKENS[task], stops)
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
            torch.cuda.empty_cache()
            halves = [ask(prompts[::2], task), ask(prompts[1::2], task)]
            return {name: join(*(half[name] for half in halves)) for name in args.trials}
        texts = [[tokenizer.decode(until(each, stops)) for each in trial] for trial in found.tokens.tolist()]
        return {trial.name: result for trial, *result in zip(trials, texts, found.read, strict=True)}

    return ask


def join(even: tuple[list[str], float], odd: tuple[list[str], float]) -> tuple[list[str], float]:
    """Outputs of every second prompt, in order again."""
    texts = [""] * (len(even[0]) + len(odd[0]))
    texts[::2], texts[1::2] = even[0], odd[0]
    return texts, (even[1] * len(even[0]) + odd[1] * len(odd[0])) / len(texts)


def stop_tokens(model, tokenizer) -> list[int]:
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [tokenizer.eos_token_id if ends is None else ends]


def until(tokens: list[int], stops: Sequence[int]) -> list[int]:
    at = next((at for at, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:at]


DENSE = "vllm"
"""The trial of an engine that reads all tokens; "dense" is the Hugging Face model's."""
SPARSE = {"method": "scan", "dense_below": 0}


class Extension:
    """Methods for the worker, through vLLM's ``worker_extension_cls``."""

    vllm_config: Any
    model_runner: Any
    device: Any

    def attend_with(self, dipr: dict[str, Any]) -> None:
        """From now on all layers have these settings."""
        from vllm_relational.sparse.decoder import SparseDecoder
        from vllm_relational.sparse.settings import read_dipr

        settings = read_dipr(dipr)
        decoders: dict[Any, SparseDecoder] = {}
        for impl in self._impls():
            shape = impl.decoder.shape
            if shape not in decoders:
                decoders[shape] = SparseDecoder(settings, shape, self.device)
            impl.settings, impl.decoder, impl._is_sparse = settings, decoders[shape], None
        for group in [each for groups in self.model_runner.attn_groups for each in groups]:
            group.get_metadata_builder(0).splitter.dense_below = lambda num_reqs: settings.dense_below

    def share_read(self) -> float:
        """Of the tokens that might be left out, since the settings changed; NaN where nothing was or nobody counts."""
        decoders = {id(impl.decoder): impl.decoder for impl in self._impls()}.values()
        counted = [each.statistics[:2].tolist() for each in decoders if each.statistics is not None]
        there, read = (sum(column) for column in zip((0, 0), *counted, strict=True))
        return read / there if there else float("nan")

    def _impls(self) -> list[Any]:
        layers = self.vllm_config.compilation_config.static_forward_context.values()
        return [layer.impl for layer in layers if getattr(layer.impl, "decoder", None) is not None]


def vllm_engine(args: argparse.Namespace) -> Ask:
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # torch has looked for a GPU here already
    from vllm import LLM, SamplingParams

    from vllm_relational.vllm_ext.settings import attention_arguments

    engine_args = {**json.loads(args.engine_args), "enforce_eager": True}  # CUDA graphs would keep the first settings
    engine_args |= attention_arguments("dipr", SPARSE, engine_args)
    engine_args["worker_extension_cls"] = "dipr_quality.Extension"
    llm = LLM(args.model, max_model_len=max(args.lengths), **engine_args)

    def ask(prompts: Sequence[torch.Tensor], task: str) -> dict[str, tuple[list[str], float]]:
        sampling = SamplingParams(temperature=0, max_tokens=recall_tasks.MAX_TOKENS[task])
        given = [{"prompt_token_ids": ids.tolist()} for ids in prompts]
        found = {}
        for trial, settings in vllm_trials(args.dipr).items():
            llm.collective_rpc("attend_with", args=(settings,))
            outputs = llm.generate(given, sampling, use_tqdm=False)
            read = 1.0 if trial == DENSE else llm.collective_rpc("share_read")[0]
            found[trial] = [output.outputs[0].text for output in outputs], read
        llm.reset_prefix_cache()  # whatever is left would only be in the way of the next prompts
        return found

    return ask


def vllm_trials(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings by name of the trial, the dense one first."""
    trials: dict[str, dict[str, Any]] = {DENSE: {"dense_below": 2**30}}
    for text in given:
        settings = json.loads(text)
        if settings.get("method", "scan") not in ("scan", "v_skip", "topk_pages"):
            raise SystemExit(f"--dipr {text}: name a sparse method, or none for scan")
        trials[f"{DENSE} dipr" + "".join(f" {name}={value}" for name, value in settings.items())] = SPARSE | settings
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--haystack", help="TABLE.parquet:COLUMN or FILE.txt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lengths", type=lambda text: sorted(map(int, text.split(","))), default=LENGTHS)
    parser.add_argument("--batch-tokens", type=int, default=1 << 19, help="of prompts that are answered together")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=",".join(recall_tasks.TASKS))
    parser.add_argument("--trials", type=lambda text: text.split(","), default=TRIALS)
    parser.add_argument("--seconds", type=float, default=0, help="begin no batch after this time")
    parser.add_argument("--dense-layers", type=int, default=2)
    parser.add_argument("--sinks", type=int, default=128)
    parser.add_argument("--recent", type=int, default=512)
    parser.add_argument("--engine", choices=["hf", "vllm"], default="hf")
    parser.add_argument("--dipr", action="append", default=[], help="with --engine vllm: settings, as a JSON object")
    parser.add_argument("--engine-args", default="{}", help="with --engine vllm: further arguments, as a JSON object")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--summary", action="store_true", help="only make the table from the answers that are there")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    check_lines(parser, args.out / "dipr_answers.csv", FIELDS)
    book = Book(args.out / "dipr_answers.csv")
    try:
        if not args.summary:
            answer(args, book, parser)
    finally:
        book.flush()
        dipr_quality_table.summarise(args.out)


def answer(args: argparse.Namespace, book: Book, parser: argparse.ArgumentParser) -> None:
    from transformers import AutoTokenizer

    if not args.model or not args.haystack:
        parser.error("MODEL and --haystack are needed")
    if unknown := set(args.tasks) - set(recall_tasks.TASKS):
        parser.error(f"there is no task {', '.join(unknown)}: there are {', '.join(recall_tasks.TASKS)}")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompts = Prompts(tokenizer, passages(args.haystack))
    on_vllm = args.engine == "vllm"
    trials = list(vllm_trials(args.dipr)) if on_vllm else args.trials
    run(args, prompts, book, trials, vllm_engine(args) if on_vllm else hugging_face(args, tokenizer))


if __name__ == "__main__":
    sys.exit(main())
