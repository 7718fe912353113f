"""Every relative link of every page leads somewhere, and every file that a page names is there."""

from __future__ import annotations

import re

import pytest
from markdown_pages import PAGES, ROOT, anchors, inline_code, name, relative_links

FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)+\.(?:py|md|sh|csv|cc|h|sql|json|svg|ipynb|parquet|toml)")
# Where a page may say less than the whole path.
BASES = ("", "vllm_relational", "csrc", "scripts", "scripts/bench", "docs", "tests")
CODE = sorted([*ROOT.glob("vllm_relational/**/*.py"), *ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cc")])
IN_CODE = re.compile(r"(?<![\w/.-])((?:[\w-]+/)+[\w-]+\.(?:py|md|cc|h|csv))\b")


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_to_files_and_headings(path):
    broken = []
    for target, anchor in relative_links(path.read_text(encoding="utf-8")):
        found = (path.parent / target).resolve() if target else path
        if not found.exists():
            broken.append(target)
        elif anchor and anchor not in anchors(found.read_text(encoding="utf-8")):
            broken.append(f"{target}#{anchor}")
    assert broken == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_files_named_in_prose_exist(path):
    named = [text for text in inline_code(path.read_text(encoding="utf-8")) if FILE.fullmatch(text)]
    missing = [text for text in named if not any((ROOT / base / text).exists() for base in BASES)]
    assert missing == [] or path.name == "CHANGELOG.md"


def named_in(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#include")]
    return {match[1] for line in lines for match in IN_CODE.finditer(line) if not match[1].startswith("v1/")}


def test_files_named_in_docstrings_and_comments_exist():
    named = {(name(path), text) for path in CODE for text in named_in(path)}
    assert {both for both in named if not any((ROOT / base / both[1]).exists() for base in BASES)} == set()


def test_a_broken_link_is_found():
    text = "[a](gone.md) ![b](there.svg#x) [c](https://example.org) `[d](code.md)`\n\n```\n[e](block.md)\n```\n"
    assert list(relative_links(text)) == [("gone.md", ""), ("there.svg", "x")]


def test_anchors_are_those_of_github():
    headings = "# A planner\n## `tree`, and how (csrc/)\n## Where it helps: 3 cases\n"
    assert anchors(headings) == {"a-planner", "tree-and-how-csrc", "where-it-helps-3-cases"}
