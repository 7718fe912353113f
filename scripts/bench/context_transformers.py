#!/usr/bin/env python3
"""A stored context in transformers, on the CPU with one thread: first whether tokens are the same, then CPU seconds.

    context_transformers.py MODEL TABLE.parquet:COLUMN --folder FOLDER [--tokens 2048,16384] [--dtypes bfloat16,float32]
                            [--rounds 5] [--new 200] [--csv FILE]

The text is that of the column, the prompt goes on with a question. Once per length and dtype the model reads it with
transformers' own cache, which takes minutes: its keys and values become a context in FOLDER/db, the answer to the
question (greedy, so many new tokens) and the CPU seconds go to FOLDER/reference_LENGTH_DTYPE.json. Later calls use
both.

Then sessions: ``mapped`` shows stored and new keys as one, ``merged`` keeps them apart and merges attention. Of both
the tokens that equal the reference's are counted; then, of ``mapped``, medians of the rounds:

    create     db.create_session, with the checksums of all files compared anew; without ``fingerprint``, which each
               process works out once from the model's weights
    first      create and generate one token; ``recompute`` is the whole prompt with transformers' cache instead
    layer      update and attention of one token in one layer, ``layer_own`` with transformers' cache and sdpa
    token      a whole step of decoding, ``token_own`` with transformers' cache

A CSV line is appended for each length and dtype.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lines import check_lines
from texts import token_ids
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vllm_relational.compare.provenance import code_version, machine
from vllm_relational.context import DB
from vllm_relational.context.files import forget
from vllm_relational.context.fingerprint import fingerprint_of_model
from vllm_relational.context.hf import ContextCache, context_attention, open_session
from vllm_relational.context.settings import SessionSettings

QUESTION = "\n\nQuestion: What are the most important facts in the text above? Answer in detail.\nAnswer:"
FIELDS = (
    "time", "commit", "machine", "model", "text", "tokens", "dtype", "new_tokens", "equal_mapped", "equal_merged",
    "fingerprint_ms", "create_ms", "first_s", "recompute_s", "speed_up", "layer_ms", "layer_own_ms", "token_ms",
    "token_own_ms",
)  # fmt: skip


@dataclass
class Reference:
    """What transformers' own cache gave: ids of prompt and answer, CPU seconds of reading all but the question and of
    the first token after that."""

    prefix: list[int]
    question: list[int]
    answer: list[int]
    prefill_s: float
    first_s: float

    @property
    def prompt(self) -> list[int]:
        return self.prefix + self.question


def seconds(action: Callable[[], Any]) -> float:
    """CPU seconds of this process."""
    begin = time.process_time()
    action()
    return time.process_time() - begin


def generate(model: Any, ids: torch.Tensor, cache: Any, count: int) -> list[int]:
    """Greedy; no token ends the answer."""
    out = model.generate(ids, past_key_values=cache, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    answer: list[int] = out[0, ids.shape[1] :].tolist()
    return answer


# -------------------------------------------------------------------------------------------------- the reference
def reference_of(model: Any, tokenizer: Any, db: DB, options: argparse.Namespace, tokens: int, dtype: str) -> Reference:
    """Read from its file, or computed, with its context stored."""
    file = options.folder / f"reference_{tokens}_{dtype}.json"
    if not file.exists():
        made = make_reference(model, tokenizer, db, options, tokens)
        file.write_text(json.dumps(made.__dict__))
    return Reference(**json.loads(file.read_text()))


def make_reference(model: Any, tokenizer: Any, db: DB, options: argparse.Namespace, tokens: int) -> Reference:
    prefix = token_ids(tokenizer, options.text, tokens).tolist()
    question = tokenizer(QUESTION, add_special_tokens=False).input_ids
    prompt = torch.tensor([prefix + question])
    cache = DynamicCache(config=model.config)
    prefill = seconds(lambda: model(prompt[:, :tokens], past_key_values=cache, logits_to_keep=1))
    db.import_(prefix, cache, model)
    first = seconds(lambda: generate(model, prompt, cache, 1))
    cache.crop(tokens - cache.get_seq_length())
    return Reference(prefix, question, generate(model, prompt, cache, options.new), prefill, first)


# ------------------------------------------------------------------------------------------------------- sessions
def equal_tokens(model: Any, db: DB, reference: Reference, contiguous: bool) -> int:
    """Tokens of the answer before the first that differs."""
    session, remaining = db.create_session(reference.prompt, model)
    if session.session.num_stored != len(reference.prefix):
        raise SystemExit(f"{session.session.num_stored} tokens found, {len(reference.prefix)} are stored")
    if not contiguous:
        settings = SessionSettings(contiguous=False)
        stored = session.session.stored
        session, remaining = open_session(stored, len(reference.prefix), reference.prompt, model, settings)
    answer = generate(model, remaining, session, len(reference.answer))
    same = [one == other for one, other in zip(answer, reference.answer, strict=True)]
    return same.index(False) if False in same else len(same)


def opened(options: argparse.Namespace, reference: Reference, model: Any) -> tuple[float, Any, torch.Tensor]:
    """CPU seconds of a session of a database that was just opened, whose files are read and compared with their
    checksums as if this process had not done so before; the session and the remaining ids."""
    session, _ = DB(options.folder / "db").create_session(reference.prompt, model)
    for layer in range(len(session.layers)):
        forget(session.session.stored.layer(layer).fileno())
    del session
    made: list[Any] = []
    taken = seconds(lambda: made.append(DB(options.folder / "db").create_session(reference.prompt, model)))
    return taken, *made[0]


def layer_seconds(model: Any, cache: Any, attention: Callable[..., Any], rounds: int) -> float:
    """Of adding one token to a layer and attending to all of it: the median over layers and rounds."""
    config, taken = model.config, []
    size = config.hidden_size // config.num_attention_heads
    for _ in range(rounds):
        query, keys, values = (
            torch.randn(1, heads, 1, size, dtype=model.dtype)
            for heads in (config.num_attention_heads, *[config.num_key_value_heads] * 2)
        )
        if isinstance(cache, ContextCache):  # what a hook of the model does before a step
            cache.expect(None)
            cache.announce(np.ones((1, 1), np.int64))
        for index, layer in enumerate(model.model.layers):
            module = layer.self_attn
            begin = time.process_time()
            attention(module, query, *cache.update(keys, values, index), None, scaling=module.scaling)
            taken.append(time.process_time() - begin)
    return statistics.median(taken)


def own_cache(session: Any) -> DynamicCache:
    """transformers' cache with the same keys and values."""
    cache = DynamicCache()
    for index, layer in enumerate(session.layers):
        cache.update(layer.keys.clone(), layer.values.clone(), index)
    return cache


def decode_seconds(model: Any, cache: Any, rounds: int) -> float:
    """Of one more token; the median."""
    token = torch.tensor([[1]])
    if isinstance(cache, ContextCache):
        cache.expect(None)
    return statistics.median(seconds(lambda: model(token, past_key_values=cache)) for _ in range(rounds))


def measure(model: Any, db: DB, reference: Reference, options: argparse.Namespace) -> dict[str, Any]:
    """What a line says beside lengths and names."""
    line: dict[str, Any] = {"fingerprint_ms": 1e3 * seconds(lambda: fingerprint_of_model(model))}
    model.set_attn_implementation("context")
    line["equal_mapped"] = equal_tokens(model, db, reference, contiguous=True)
    line["equal_merged"] = equal_tokens(model, db, reference, contiguous=False)
    created, first = [], []
    for _ in range(options.rounds):
        taken, session, remaining = opened(options, reference, model)
        created.append(taken)
        first.append(taken + seconds(lambda: generate(model, remaining, session, 1)))  # noqa: B023
    recompute = reference.prefill_s + reference.first_s
    line |= {"create_ms": 1e3 * statistics.median(created), "first_s": statistics.median(first)}
    line |= {"recompute_s": recompute, "speed_up": recompute / line["first_s"]}
    own = own_cache(session)
    for name, cache, implementation, attention in (
        ("", session, "context", context_attention),
        ("_own", own, "sdpa", sdpa_attention_forward),
    ):
        model.set_attn_implementation(implementation)
        line[f"token{name}_ms"] = 1e3 * decode_seconds(model, cache, options.rounds)
        line[f"layer{name}_ms"] = 1e3 * layer_seconds(model, cache, attention, options.rounds)
    return line


def append(file: Path, line: dict[str, Any]) -> None:
    """One line of CSV, and the same on the screen."""
    line = {name: round(line[name], 3) if isinstance(line[name], float) else line[name] for name in FIELDS}
    new = not file.exists()
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(line)
    print(*(f"{name}={value}" for name, value in line.items()), sep="\n", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokens", default="2048,16384")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args(arguments)
    check_lines(parser, options.csv, FIELDS)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    options.folder.mkdir(parents=True, exist_ok=True)
    tokenizer, db = AutoTokenizer.from_pretrained(options.model), DB(options.folder / "db")
    for dtype in options.dtypes.split(","):
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, dtype)).eval()
        for tokens in map(int, options.tokens.split(",")):
            reference = reference_of(model, tokenizer, db, options, tokens, dtype)
            line = {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": code_version(),
                "machine": machine(),
            }
            line |= {"model": Path(options.model).name, "text": Path(options.text).name, "tokens": tokens}
            line |= {"dtype": dtype, "new_tokens": len(reference.answer)}
            append(options.csv, line | measure(model, db, reference, options))


if __name__ == "__main__":
    main()
