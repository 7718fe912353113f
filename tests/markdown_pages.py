"""The pages of this repository as tests read them: their links, headings and blocks of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*.md"),
        *ROOT.glob("patches/*.md"),
    ]
)
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block of code: its language and text, and the line of the page on which it starts."""

    language: str
    text: str
    line: int


def name(path: Path) -> str:
    """Of a page, for test ids."""
    return str(path.relative_to(ROOT))


def blocks(text: str, *languages: str) -> list[Block]:
    """The fenced blocks in these languages; all without any."""
    found = [Block(m[1], m[2], text[: m.start()].count("\n") + 1) for m in _FENCE.finditer(text)]
    return [block for block in found if not languages or block.language in languages]


def without_blocks(text: str) -> str:
    """The prose of a page."""
    return _FENCE.sub("", text)


def inline_code(text: str) -> list[str]:
    """What stands in single backticks, on one line each."""
    return [" ".join(match[1].split()) for match in _INLINE.finditer(without_blocks(text))]


def relative_links(text: str) -> Iterator[tuple[str, str]]:
    """``(path, anchor)`` of every link that leads to this repository; either may be empty."""
    prose = re.sub(r"`[^`\n]*`", "", without_blocks(text))
    for match in _LINK.finditer(prose):
        if not re.match(r"[a-z]+:", match[1]):
            path, _, anchor = match[1].partition("#")
            yield path, anchor


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    return {_slug(match[1]) for match in _HEADING.finditer(without_blocks(text))}


def _slug(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
    return kept.strip().replace(" ", "-")
