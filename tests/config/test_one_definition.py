"""An option is one field: signatures, the command line, pages, editors and the identity of a job follow from it."""

from __future__ import annotations

import inspect
import re

import make_pages
import pandas as pd
import pytest
import typer
import typer.main
from fake_engine import FakeEngine
from pages import arguments, reference
from typer.testing import CliRunner

import vllm_relational.sql
from vllm_relational import LLMAccessor, RelationalError, RelationalLLM
from vllm_relational.cli.app import app
from vllm_relational.cli.fields import Given, flag, help_of, values, with_options
from vllm_relational.config.arguments import QueryArguments, SqlArguments
from vllm_relational.config.kinds import Number
from vllm_relational.config.llm import LlmOptions, ServerOptions
from vllm_relational.config.option import Cli, facts, option
from vllm_relational.config.query import QueryOptions
from vllm_relational.config.signature import takes
from vllm_relational.config.sql import SqlOptions

COMMANDS = typer.main.get_group(app).commands
SPELLED = [
    (kind, name, command)
    for kind in (QueryOptions, SqlOptions, ServerOptions, LlmOptions)
    for name, field in kind.known().items()
    if (cli := facts(field).cli) is not None
    for command in cli.commands
    if (command in ("sql", "explain")) == (kind is SqlOptions) or kind is ServerOptions
]


# ------------------------------------------------------------------------------------------------ the options there are
@pytest.mark.parametrize(
    "function",
    [getattr(RelationalLLM, name) for name in ("run", "query", "plan", "prepare")]
    + [getattr(LLMAccessor, name) for name in ("map", "filter", "classify", "score")],
    ids=lambda function: function.__qualname__,
)
def test_python_names_every_option_of_a_query(function):
    parameters = inspect.signature(function).parameters
    assert set(QueryOptions.known()) <= set(parameters)
    assert not [name for name, each in parameters.items() if each.kind is inspect.Parameter.VAR_KEYWORD]
    assert parameters["order"].default is None and parameters["nulls"].default == "error"
    assert parameters["pin"].annotation == "str | Iterable[str] | None"


def test_python_names_every_option_of_sql():
    parameters = inspect.signature(vllm_relational.sql.connect).parameters
    assert set(parameters) == {"database", "llm", "side", *SqlOptions.known()}
    assert parameters["max_pairs"].default == 100_000


@pytest.mark.parametrize(
    "function, kind", [(RelationalLLM.run, QueryOptions), (vllm_relational.sql.connect, SqlOptions)]
)
def test_help_says_what_every_option_means(function, kind):
    said = " ".join(inspect.getdoc(function).split())
    for name, field in kind.known().items():
        assert field.description and f"{name}: {' '.join(field.description.split())}" in said


def test_editors_read_every_option():
    assert set(QueryArguments.__annotations__) == set(QueryOptions.known())
    assert set(SqlArguments.__annotations__) == set(SqlOptions.known())


@pytest.mark.parametrize("kind, name, command", SPELLED, ids=lambda part: getattr(part, "__name__", part))
def test_the_command_line_has_every_option_that_says_so(kind, name, command):
    field = kind.known()[name]
    cli = facts(field).cli
    option_of = {spelling: each for each in COMMANDS[command].params for spelling in each.opts}
    assert option_of[flag(name, cli).partition("/")[0]].help == help_of(cli)


def test_the_arguments_of_the_object_are_its_options():
    parameters = inspect.signature(RelationalLLM).parameters
    defaults = {name: each.default for name, each in parameters.items() if name != "engine_args"}
    assert defaults == {name: field.default for name, field in LlmOptions.known().items()}


# ------------------------------------------------------------------------------------------------------- a new option
class Warmer(QueryOptions):
    """Options with one more."""

    temperature: Number = option(
        0.0,
        "how freely the model chooses its words.",
        "give a number from 0 to 2",
        ge=0,
        le=2,
        identity="temperature",
        cli=Cli("How freely the model chooses.", ("warm",), "answers"),
    )


def test_a_new_option_has_its_place_in_the_signature():
    @takes(Warmer, explained=True)
    def ask(prompt: str, **options: object) -> None:
        """Ask."""

    assert inspect.signature(ask).parameters["temperature"].default == 0.0
    assert "temperature: float" in str(inspect.signature(ask)).replace("'", "")
    assert "temperature: how freely the model chooses its words." in ask.__doc__


def test_a_new_option_is_on_the_command_line():
    seen = {}

    @with_options(Warmer)
    def warm(prompt: str, *, answers: Given) -> int:
        """Ask."""
        seen.update(values(answers, Warmer))
        return 0

    program = typer.Typer()
    program.command()(warm)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", CliRunner().invoke(program, ["--help"], env={"COLUMNS": "200"}).output)
    assert "--temperature" in shown and "How freely the model chooses." in shown and "[default: 0.0]" in shown
    assert CliRunner().invoke(program, ["why?", "--temperature", "0.5"]).exit_code == 0 and seen == {"temperature": 0.5}


def test_a_new_option_is_on_the_pages_and_in_editors():
    (row,) = reference.rows_of(Warmer)
    assert row == ["`temperature`", "`0.0`", "number: a number from 0 to 2", "how freely the model chooses its words."]
    assert "    temperature: float" in list(arguments.typed_dict("WarmerArguments", Warmer))
    assert make_pages.DOCS.parent / "vllm_relational/config/arguments.py" in map(make_pages.place, make_pages.PAGES)


def test_a_new_option_is_read_and_belongs_to_the_job():
    with pytest.raises(RelationalError, match="temperature is 3: give a number from 0 to 2"):
        Warmer(temperature=3)
    cold, warm = Warmer().job_identity(), Warmer(temperature=1).job_identity()
    assert cold == {**QueryOptions().job_identity(), "temperature": 0.0} and warm["temperature"] == 1.0


def test_only_what_changes_answers_by_itself_is_named_in_the_identity():
    given = {"pin": "text", "order": "fixed", "seed": 3, "dedup": "normalized"}
    assert QueryOptions(**given).job_identity() == QueryOptions().job_identity()
    assert set(QueryOptions().job_identity()) >= {"system prompt", "layout"}


def test_the_order_of_the_object_counts_where_none_is_given():
    frame = pd.DataFrame({"text": ["b", "a"]})
    with RelationalLLM(engine=FakeEngine(), order="fixed") as llm:
        assert llm.prepare(frame, "{text}?", order=None).config.order == "fixed"
        assert llm.prepare(frame, "{text}?", order="ggr").config.order == "ggr"
        with pytest.warns(UserWarning, match="called 'original' now"):
            assert llm.prepare(frame, "{text}?", order="published").config.order == "original"
