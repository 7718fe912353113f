"""Pages that are made are up to date, and the README says what they say."""

from __future__ import annotations

import make_pages
import pytest
from markdown_pages import ROOT, name, without_blocks
from pages import orders, reference
from pages.measurements import NOTICE, fixed, one, percent, table, wrapped

from vllm_relational.config.option import Options, option

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_pages_are_up_to_date():
    stale = [str(path.relative_to(ROOT)) for path in make_pages.outdated()]
    assert stale == [], "run scripts/make_pages.py"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=name)
def test_a_page_says_first_what_its_reader_can_do(path):
    first = path.read_text(encoding="utf-8").replace(f"{NOTICE}\n\n", "").split("\n\n")[1]
    assert first.startswith(("Read this", "Follow this", "Look up", "Find here")), first


def test_all_results_are_listed():
    made = {path.name for path in (ROOT / "docs" / "results").glob("*.md")} - {"README.md"}
    listed = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")
    assert made and all(f"]({page})" in listed for page in made)


def test_the_readme_is_short_and_its_speed_ups_are_those_measured():
    assert len(README.split()) <= 900
    assert orders.span() in README


@pytest.mark.parametrize(
    "value, places, text", [("0.5", 0, "1"), ("2.5", 0, "3"), ("1234.56", 1, "1,234.6"), ("-0.04", 1, "-0.0")]
)
def test_numbers_are_rounded_half_up(value, places, text):
    assert fixed(value, places) == text


def test_shares_and_the_last_of_several_runs():
    assert percent("0.8215") == "82.2%" and percent("") == ""
    rows = [{"order": "tree", "us": "1"}, {"order": "tree", "us": "2"}]
    assert one(rows, order="tree")["us"] == "2"
    with pytest.raises(LookupError, match="no line has"):
        one(rows, order="gone")


def test_tables_and_paragraphs():
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | --: |\n| x | 1 |"
    assert wrapped("word " * 40).count("\n") == 1 and wrapped("| " + "cell " * 40).count("\n") == 0


class Shown(Options):
    """What is shown."""

    size: int = option(3, "in tokens, per request.", "give a whole number from 1")
    labels: tuple[str, ...] | None = option(None, "", "give labels")
    inside: dict[str, float] = option(..., "by column.", "give numbers by column | or none")


def test_options_are_read_from_their_fields():
    assert reference.rows_of(Shown) == [
        ["`size`", "`3`", "whole number: a whole number from 1", "in tokens, per request."],
        ["`labels`", "`None`", "list: labels", ""],
        ["`inside`", "required", "mapping: numbers by column \\| or none", "by column."],
    ]


def test_inherited_options_stand_in_the_table_of_their_class():
    class More(Shown):
        """More."""

        size: int = option(4, "", "")

    assert [row[0] for row in reference.rows_of(More)] == ["`size`"]
    assert without_blocks(reference.first_paragraph(More)) == "More."
