"""Natural text of any length for benchmarks: the distinct texts of a table's column, joined, as token ids."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pandas as pd
import torch

CHARACTERS_A_TOKEN = 8  # more than any natural text has: only what is needed is tokenised


def passages(source: str) -> list[str]:
    """Distinct texts of ``TABLE.parquet:COLUMN`` in the table's order, without tags; or a text file's paragraphs."""
    path, _, column = source.rpartition(":")
    if not path or not Path(path).exists():
        return Path(source).read_text(encoding="utf-8").split("\n\n")
    texts = pd.read_parquet(path, columns=[column])[column].dropna().drop_duplicates()
    return [html.unescape(re.sub(r"<[^>]+>", " ", text)).strip() for text in texts]


def token_ids(tokenizer, source: str, length: int, segment: int = 0) -> torch.Tensor:
    """The ``segment``-th stretch of ``length`` tokens of a source, as int64; ``ValueError`` if it is not that long."""
    text = "\n\n".join(passages(source))[: (segment + 1) * length * CHARACTERS_A_TOKEN]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][segment * length : (segment + 1) * length]
    if len(ids) < length:
        raise ValueError(f"{source} ends before segment {segment} of {length} tokens")
    return torch.tensor(ids)
