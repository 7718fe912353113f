#!/usr/bin/env python3
"""Do answers over stored long texts stay right when a session searches its keys instead of reading them all?

    context_quality.py MODEL --haystack squad.parquet:context --out FOLDER --contexts FOLDER
        --session '{"method": "dipr", "alpha": 0.001, "dense_below": 0}' ... [--budget 0.25]
        [--lengths 8192,16384,32768] [--samples 20] [--tasks passkey,kv] [--seconds 540] [--part 1/4]
    context_quality.py --out FOLDER --summary

Every prompt is prefilled densely and its keys and values are stored as a context. Then the last token of the prompt and
the answer are computed with transformers' own cache (trial ``dense``) and, for each ``--session`` (an object of
``SessionSettings``; without ``dense_below`` texts of up to 8,192 tokens are not searched), by a session over the stored
context. ``--budget`` is the share of the stored tokens that may be
on the model's device. Tasks, prompts, the file of answers and the table are those of ``dipr_quality.py``: what is
there already is not asked again. ``--part 2/4`` asks the second of four parts of the samples, into a file of its own;
``--summary`` reads all parts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dipr_quality
import dipr_quality_table
import pandas as pd
import recall_tasks
import torch
from dipr_quality import FIELDS, Ask, Book, Prompts, stop_tokens, until
from lines import check_lines
from texts import passages

LENGTHS = "8192,16384,32768"
TASKS = "passkey,numbers,kv,variables,frequent"
DENSE = "dense"
PREFILL = 4096  # prompt tokens a forward pass


def name_of(settings: str) -> str:
    """A trial's name: its settings, without quotes and braces."""
    return "context" + "".join(f" {name}={value}" for name, value in json.loads(settings).items())


class Answerer:
    """One model: prompts to answers, by transformers' cache and by sessions."""

    def __init__(self, args: argparse.Namespace, tokenizer: Any) -> None:
        from transformers import AutoModelForCausalLM

        import vllm_relational.context.hf  # noqa: F401, registers the attention function
        from vllm_relational.context import DB

        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16, attn_implementation="sdpa")
        self.model, self.tokenizer, self.budget = model.to(args.device).eval(), tokenizer, args.budget
        self.stops = stop_tokens(model, tokenizer)
        self.db = DB(tempfile.mkdtemp(dir=args.contexts))
        self.trials = {name_of(each): json.loads(each) for each in args.session}
        self.visited: dict[str, list[float]] = {}

    def ask(self, prompts: Sequence[torch.Tensor], task: str) -> dict[str, tuple[list[str], float]]:
        """``dipr_quality.Ask``, a prompt at a time."""
        found = [self.answers(ids, recall_tasks.MAX_TOKENS[task]) for ids in prompts]
        return {
            trial: ([each[trial][0] for each in found], sum(each[trial][1] for each in found) / len(found))
            for trial in (DENSE, *self.trials)
        }

    @torch.inference_mode()
    def answers(self, ids: torch.Tensor, length: int) -> dict[str, tuple[str, float]]:
        """Of each trial the answer and the share of the body, per query head, that was attended to."""
        from transformers import DynamicCache

        whole, cache = ids[None].to(self.model.device), DynamicCache()
        for start in range(0, len(ids) - 1, PREFILL):
            self.model.model(whole[:, start : min(start + PREFILL, len(ids) - 1)], past_key_values=cache)
        stored = self.db.import_(ids[:-1], cache, self.model)
        try:
            found = {DENSE: (self.generate(whole, cache, length), 1.0)}
            self.model.set_attn_implementation("context")
            for name, settings in self.trials.items():
                found[name] = self.search(ids, settings, length)
        finally:
            self.model.set_attn_implementation("sdpa")
            self.db.delete(stored)
        return found

    def search(self, ids: torch.Tensor, settings: dict[str, Any], length: int) -> tuple[str, float]:
        from vllm_relational.context.settings import SessionSettings

        kept = int(self.budget * len(ids)) if self.model.device.type != "cpu" else None
        chosen = SessionSettings(device_tokens=kept, **settings)
        session, remaining = self.db.create_session(ids, self.model, settings=chosen)
        text = self.generate(remaining, session, length)
        counts = session.session.counts
        self.visited.setdefault(str(settings), []).append(counts.visited / max(counts.tokens, 1))
        return text, counts.attended / max(counts.tokens, 1)

    def generate(self, ids: torch.Tensor, cache: Any, length: int) -> str:
        """Greedy, without the prompt and without what ends an answer."""
        out = self.model.generate(
            ids, past_key_values=cache, max_new_tokens=length, do_sample=False, eos_token_id=self.stops,
            pad_token_id=self.stops[0],
        )  # fmt: skip
        return str(self.tokenizer.decode(until(out[0, ids.shape[1] :].tolist(), self.stops)))


def summarise(folder: Path) -> None:
    """One table of all parts."""
    parts = sorted(folder.glob("dipr_answers*.csv"))
    answers = pd.concat([pd.read_csv(part) for part in parts]).drop_duplicates(["length", "task", "seed", "trial"])
    table = dipr_quality_table.table(answers)
    table.to_csv(folder / "context_quality.csv", index=False)
    shown = ["length", "task", "trial", "samples", "score", "difference", "difference_low", "difference_high",
             "lost", "won", "p_value", "same_output", "read"]  # fmt: skip
    print(table[shown].round(4).to_string(index=False))


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--haystack", help="TABLE.parquet:COLUMN or FILE.txt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--contexts", help="folder for the stored contexts; each is deleted when it was asked")
    parser.add_argument("--session", action="append", default=[], help="SessionSettings as a JSON object; repeatable")
    parser.add_argument("--budget", type=float, default=0.25, help="share of the tokens on the device")
    parser.add_argument("--lengths", type=lambda text: sorted(map(int, text.split(","))), default=LENGTHS)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=TASKS)
    parser.add_argument("--seconds", type=float, default=0, help="begin no sample after this time")
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--summary", action="store_true", help="only make the table from the answers that are there")
    args = parser.parse_args(arguments)
    if not args.summary and not (args.model and args.haystack and args.contexts):
        parser.error("MODEL, --haystack and --contexts are needed")
    if unknown := set(args.tasks) - set(recall_tasks.TASKS):
        parser.error(f"there is no task {', '.join(unknown)}: there are {', '.join(recall_tasks.TASKS)}")
    return parser, args


class PartOfBook(Book):
    """Answers of one part of the samples; to ``rounds`` those of other parts are there already."""

    def __init__(self, path: Path, args: argparse.Namespace, trials: Sequence[str]) -> None:
        super().__init__(path)
        part, parts = map(int, args.part.split("/"))
        others = [seed for seed in range(args.samples) if seed % parts != part - 1]
        everything = ((length, task, trial) for length in args.lengths for task in args.tasks for trial in trials)
        self.done |= {(length, task, seed, trial) for length, task, trial in everything for seed in others}


def main() -> None:
    parser, args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.summary:
        return summarise(args.out)
    from transformers import AutoTokenizer

    file = args.out / f"dipr_answers_{args.part.replace('/', '_of_')}.csv"
    check_lines(parser, file, FIELDS)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    answerer = Answerer(args, tokenizer)
    book = PartOfBook(file, args, [DENSE, *answerer.trials])
    args.batch_tokens = 1  # a sample a round
    try:
        ask: Ask = answerer.ask
        dipr_quality.run(args, Prompts(tokenizer, passages(args.haystack)), book, [DENSE, *answerer.trials], ask)
    finally:
        book.flush()
        for settings, shares in answerer.visited.items():
            print(
                f"# {settings}: looked at {sum(shares) / len(shares):.1%} of the body's keys, in {len(shares)} samples"
            )


if __name__ == "__main__":
    sys.exit(main())
