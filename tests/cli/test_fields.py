"""Options of the command line that are made from fields: how they are written, where they stand, what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vllm_relational.cli.fields import FORMS, Given, values, with_options
from vllm_relational.config import QueryOptions
from vllm_relational.config.llm import ServerOptions
from vllm_relational.records import RelationalError


@pytest.mark.parametrize(
    "form, text, value",
    [
        ("text", "1,2", "1,2"),
        ("list", "a, b", ["a", "b"]),
        ("list", '["a,b", 1]', ["a,b", "1"]),
        ("lists", ["a,b", "c,d"], [["a", "b"], ["c", "d"]]),
        ("labels", "yes,no", ("yes", "no")),
        ("labels", '["not, sure", 1]', ("not, sure", "1")),
        ("range", "-1,5", (-1, 5)),
        ("rules", ["a=b=case, punctuation", "*=default"], {"a=b": ("case", "punctuation"), "*": ("default",)}),
        ("weights", ["a=b=2", "c=.5"], {"a=b": 2.0, "c": 0.5}),
    ],
)
def test_forms(form, text, value):
    assert FORMS[form].read(text, "--option") == value


@pytest.mark.parametrize(
    "form, text, reason",
    [
        ("list", "[1", "--option is not a JSON list"),
        ("list", "[[1]]", "--option may list texts and numbers only"),
        ("labels", "[1.5, 2]", "--option is not a JSON list of labels: label 1 is 1.5"),
        ("range", "1", "--option is '1': write two whole numbers, e.g. --option 1,5"),
        ("range", "1,b", "write two whole numbers"),
        ("rules", ["case"], "--option 'case': write COLUMN=rule,rule"),
        ("rules", ["a="], "write COLUMN=rule,rule"),
        ("weights", ["a"], "--option 'a': write COLUMN=NUMBER, e.g. --option description=2"),
        ("weights", ["a=b"], "write COLUMN=NUMBER"),
        ("schema", Path("nowhere.json"), "cannot read the JSON schema nowhere.json"),
    ],
)
def test_what_cannot_be_read_is_refused_by_the_name_of_the_option(form, text, reason):
    with pytest.raises(RelationalError, match=reason.replace("[", r"\[")):
        FORMS[form].read(text, "--option")


def test_options_that_were_not_given_are_left_to_python():
    assert values({"pin": None, "nulls": "keep", "audit": 0, "resume": False}, QueryOptions) == {
        "nulls": "keep",
        "audit": 0,
        "resume": False,
    }


def bench(table: str, *, answers: Given, last: bool = False, server: Given) -> int:
    """A command with two sections."""
    print(table, sorted(answers), last, dict(server))
    return 0


def invoke(*arguments: str):
    program = typer.Typer()
    program.command()(with_options(QueryOptions, ServerOptions)(bench))
    return CliRunner().invoke(program, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_options_of_a_section_stand_in_its_place():
    shown = invoke("--help").output
    places = [shown.index(option) for option in ("--choices", "--max-tokens", "--last", "--concurrency", "--timeout")]
    assert places == sorted(places)
    assert "--pin" not in shown and "--dedup" not in shown  # sections that it does not take


def test_a_command_gets_its_options_by_their_names_in_python():
    done = invoke("t", "--retries", "3", "--last")
    served = {"concurrency": 32, "timeout_s": None, "max_retries": 3, "served_as": None}
    assert done.output.strip() == f"t ['choices', 'max_tokens', 'range', 'schema'] True {served}"
    assert invoke("t", "--concurrency", "0").exit_code == 2 and invoke("t", "--pin", "a").exit_code == 2
