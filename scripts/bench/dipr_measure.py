#!/usr/bin/env python3
"""What DIPR attention keeps and costs on a real model, over texts, lengths and ways to attend.

    dipr_measure.py MODEL --text squad=squad.parquet:context --text reviews=reviews.parquet:comments --out FOLDER
        [--lengths 8192,16384,32768] [--trials dipr:4e-3+tail,top:500 ...] [--seconds 150] [--dump kv.pt]

The last 128 positions of each text are run under each way to attend (``scripts/bench/attention/trial.py`` says how
to write one), the text's own tokens given. Writes to FOLDER, as results come: ``dipr_measure.csv``, a line a text,
length and way; ``dipr_layers.csv``, the same a layer; ``dipr_heads.csv``, a head, for the ways in ``--heads-of``;
and plots. ``--dump`` keeps keys, values and queries of ``--dump-layers`` for ``dipr_data.py``, four stretches of
each text. With ``--seconds`` what does not fit is left out, last named first, and said.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch
from attention import measure
from attention.measure import STATISTICS, Measured
from attention.trial import read_trial
from texts import token_ids

from vllm_relational.compare.provenance import code_version, machine
from vllm_relational.sparse.naive import Window

ALPHAS = ("1e-1", "1.2e-2", "4e-3", "1e-3", "1e-4", "1e-5")
OVER_LENGTH = ("8/L", "32/L", "128/L")
INDEXES = ("", "@4/32", "@4/64", "@3/16", "@8/16")
RULES = (
    *(f"dipr:{alpha}" for alpha in (*ALPHAS, *OVER_LENGTH)),
    *(f"top:{count}" for count in (100, 500, 2000)),
    *(f"mass:{mass}" for mass in (0.8, 0.9, 0.95, 0.99)),
    "window",
)
DEFAULT = (
    *(rule + tail for rule in RULES for tail in ("", "+tail", "+est")),
    *(f"scan:{alpha}{index}+est" for alpha in ("1.2e-2", "4e-3", "1e-3") for index in INDEXES),
    *(f"{scan}:{alpha}+est" for alpha in ("1.2e-2", "4e-3", "1e-3") for scan in ("scan_window", "scan_global")),
    *(f"estimated:{alpha}{index}+est" for alpha in ("1.2e-2", "4e-3", "1e-3") for index in ("", "@4/64", "@3/16")),
    *(f"dipr:{alpha}{tail}+head" for alpha in ("1.2e-2", "4e-3", "1e-3") for tail in ("", "+tail")),
)
HEADS_OF = "dipr:4e-3+tail,dipr:1e-3,scan:4e-3+est"
ABOUT = ("time", "commit", "machine", "model", "text", "length", "trial", "dense_layers")
SEGMENTS = 4


class Tables:
    """The three CSV files, written line by line."""

    def __init__(self, folder: Path, heads_of: set[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.heads_of = heads_of
        self._files = [(folder / name).open("w", newline="") for name in ("dipr_measure.csv", "dipr_layers.csv")]
        self._files.append((folder / "dipr_heads.csv").open("w", newline=""))
        self.summary, self.layers, self.heads = map(csv.writer, self._files)
        self.summary.writerow([*ABOUT, "kl", "kl_95th", "same_top", "nll", *STATISTICS])
        self.layers.writerow([*ABOUT[4:], "layer", *STATISTICS])
        self.heads.writerow([*ABOUT[4:], "layer", "head", *STATISTICS])

    def write(self, about: list[object], dense_layers: int, found: Measured) -> None:
        numbers = [found.kl.mean(), found.kl.quantile(0.95), found.same_top.float().mean(), found.nll.mean()]
        means = found.over_layers(dense_layers).values()
        self.summary.writerow([*about, *(f"{float(each):.6g}" for each in (*numbers, *means))])
        for layer, heads in enumerate(found.heads):
            self.layers.writerow([*about[4:], layer, *rounded(heads.mean(0))])
            if found.trial.name in self.heads_of:
                self.heads.writerows([*about[4:], layer, head, *rounded(each)] for head, each in enumerate(heads))
        for file in self._files:
            file.flush()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def rounded(numbers: torch.Tensor) -> list[str]:
    return [f"{number:.4g}" for number in numbers.tolist()]


def load(folder: str, device: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


def cases(args: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Name and source of each text, and its length; short ones first."""
    for length in sorted(map(int, args.lengths.split(","))):
        for text in args.text:
            name, _, source = text.partition("=")
            yield name, source, length


def run(args: argparse.Namespace, model, tokenizer, tables: Tables) -> None:
    started = time.perf_counter()
    window = Window(args.sinks, args.recent)
    trials = [read_trial(word) for word in args.trials.split(",")]
    done = [now(), code_version(), machine(), Path(args.model).name]
    for name, source, length in cases(args):
        tokens = token_ids(tokenizer, source, length)
        begun = time.perf_counter()
        results = measure.measure(model, tokens, trials, window=window, dense_layers=args.dense_layers)
        for count, found in enumerate(results, 1):
            about = [*done, name, length, found.trial.name, args.dense_layers]
            tables.write(about, args.dense_layers, found)
            show(name, found, args.dense_layers)
            if args.seconds and time.perf_counter() - started > args.seconds:
                left = ", ".join(trial.name for trial in trials[count:]) or "none"
                print(f"out of time after {args.seconds} s: left out of {name} at {length}: {left}; and what follows")
                return
        print(f"# {name} {length}: {time.perf_counter() - begun:.1f} s", flush=True)


def show(text: str, found: Measured, dense_layers: int) -> None:
    means = found.over_layers(dense_layers)
    shares = "  ".join(f"{name} {means[name]:.4f}" for name in STATISTICS)
    top = found.same_top.float().mean()
    print(f"{text:8} {found.seq_len:6} {found.trial.name:24} kl {found.kl.mean():.5f}  top1 {top:.3f}  {shares}")


def dump(args: argparse.Namespace, model, tokenizer) -> None:
    """Keys, values and queries of stretches of every text, for ``dipr_data.py``."""
    length = max(map(int, args.lengths.split(",")))
    layers = [int(layer) for layer in args.dump_layers.split(",")]
    stretches = []
    for text in args.text:
        name, _, source = text.partition("=")
        for segment in range(args.dump_segments):
            tokens = token_ids(tokenizer, source, length, segment)
            stretches.append({"text": name, "segment": segment, **measure.record(model, tokens, layers)})
    config = model.config
    theta = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    torch.save({"model": Path(args.model).name, "rope_theta": theta["rope_theta"], "stretches": stretches}, args.dump)
    print(f"# {args.dump}: {len(stretches)} stretches of {length} tokens, layers {layers}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", action="append", required=True, help="NAME=TABLE.parquet:COLUMN or NAME=FILE.txt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lengths", default="8192,16384,32768")
    parser.add_argument("--trials", default=",".join(DEFAULT))
    parser.add_argument("--heads-of", default=HEADS_OF)
    parser.add_argument("--dense-layers", type=int, default=2)
    parser.add_argument("--sinks", type=int, default=128)
    parser.add_argument("--recent", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--dump-layers", default="3,9,14,20")
    parser.add_argument("--dump-segments", type=int, default=SEGMENTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    model, tokenizer = load(args.model, args.device)
    if args.dump:
        dump(args, model, tokenizer)
    tables = Tables(args.out, set(args.heads_of.split(",")))
    run(args, model, tokenizer, tables)
    from dipr_plots import plot_measured

    plot_measured(args.out)


if __name__ == "__main__":
    main()
