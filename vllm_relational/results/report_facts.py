"""What both forms of the report are made of: sections of texts, and how numbers are written."""

from __future__ import annotations

from dataclasses import dataclass

Cells = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A table of texts ready to show: its name, the column heads after the first column, and rows of cells.

    ``heads`` is empty where a row is a label and its value.
    """

    name: str
    heads: Cells
    rows: list[Cells]


def count(number: int) -> str:
    """A whole number with thousands separators."""
    return f"{number:,}"


def percent(fraction: float) -> str:
    """A fraction in percent, one decimal."""
    return f"{100 * fraction:.1f}%"
