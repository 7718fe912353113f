"""Reading the CSVs of ``scripts/bench`` and writing tables of Markdown."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1] / "bench"
NOTICE = "<!-- Made by scripts/make_pages.py: do not edit. -->"

Row = dict[str, str]

# What the CSVs call models -> what the pages call them.
MODELS = {"llama8b": "shape of Llama-3-8B, random weights, bf16"}


def read(name: str) -> list[Row]:
    """The lines of ``scripts/bench/NAME.csv``."""
    with (BENCH / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def chosen(rows: Iterable[Row], /, **wanted: str | int | Sequence[str]) -> list[Row]:
    """The lines whose columns have these values; a sequence: one of them."""
    return [row for row in rows if all(_fits(row[column], value) for column, value in wanted.items())]


def _fits(found: str, wanted: str | int | Sequence[str]) -> bool:
    return found in wanted if isinstance(wanted, list | tuple) else found == str(wanted)


def one(rows: Iterable[Row], /, **wanted: str | int | Sequence[str]) -> Row:
    """The last line with these values: a later run replaces an earlier one. ``LookupError`` if there is none."""
    found = chosen(rows, **wanted)
    if not found:
        raise LookupError(f"no line has {wanted}")
    return found[-1]


# --------------------------------------------------------------------------------------------------------- numbers
def fixed(value: str | float | Decimal, places: int = 0) -> str:
    """A number with so many places, half up, and commas between thousands."""
    return f"{Decimal(str(value)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):,}"


def percent(share: str | float, places: int = 1) -> str:
    """A share of 1 as per cent; nothing for nothing."""
    return f"{fixed(Decimal(str(share)) * 100, places)}%" if share != "" else ""


def times(value: str | float, places: int = 2) -> str:
    """A speed-up."""
    return f"{fixed(value, places)}x"


def tokens(value: str) -> str:
    """A context length, in units of 1,024 tokens."""
    return f"{int(value) // 1024}K"


# ----------------------------------------------------------------------------------------------------------- pages
def table(headers: Sequence[str], rows: Iterable[Sequence[str]], num_texts: int = 1) -> str:
    """A table of Markdown; the first ``num_texts`` columns are texts, the others are numbers."""
    rule = ["---"] * num_texts + ["--:"] * (len(headers) - num_texts)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headers, rule, *rows))


def conditions(rows: Sequence[Row], source: str, script: str = "") -> str:
    """One line under a heading: machine, model, commit, and where the numbers are."""
    machines = _values(rows, "machine")
    models = [MODELS.get(name, name) for name in _values(rows, "model")]
    parts = [*machines, *models, "commit " + ", ".join(_values(rows, "commit"))]
    made = f", made by `scripts/bench/{script}.py`" if script else ""
    return f"{'; '.join(parts)}. Numbers: `scripts/bench/{source}.csv`{made}."


def _values(rows: Sequence[Row], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows if row.get(column)))


def page(title: str, purpose: str, *parts: str) -> str:
    """A whole page: its first paragraph says what the reader learns."""
    return "\n\n".join([f"# {title}", NOTICE, *map(wrapped, (purpose, *parts))]) + "\n"


def wrapped(part: str) -> str:
    """A paragraph in lines of 120 characters; anything else as it is."""
    if "\n" in part or part.startswith(("#", "|", "-", "!", "<")):
        return part
    return textwrap.fill(part, 120, break_long_words=False, break_on_hyphens=False)
