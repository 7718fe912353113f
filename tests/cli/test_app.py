"""The command line: exit statuses, and errors of one line that say what to do."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_relational import RelationalLLM
from vllm_relational.cli.app import app
from vllm_relational.cli.output import check_csv
from vllm_relational.compare.orders import FIELDS
from vllm_relational.records import RelationalError
from vllm_relational.table import read_table
from vllm_relational.vllm_ext.settings import EVICTIONS

ROWS = "text,n\ngood,1\nbad,2\ngood,1\n"


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(ROWS)
    return path


def run_cli(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)])


def run(*arguments: object):
    return run_cli("run", *arguments)


def error_of(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# --------------------------------------------------------------------------------------------------- dry run
def test_a_dry_run_plans_with_the_models_tokenizer(table, tokenizer_folder):
    result = run(table, "-p", "Is {text} good?", "-m", tokenizer_folder, "--dry-run")
    assert result.exit_code == 0 and result.stdout == ""
    assert "3" in result.stderr and "Traceback" not in result.stderr


def hit_rate_of(*arguments: object) -> float:
    result = run(*arguments, "--dry-run")
    assert result.exit_code == 0, result.output
    (share,) = re.findall(r"([\d.]+)%", next(line for line in result.stderr.splitlines() if "predicted" in line))
    return float(share)


def test_a_dry_run_knows_the_cache_and_what_it_evicts(tmp_path, tokenizer_folder):
    table = tmp_path / "t.csv"
    texts = [letter * 400 for letter in "abcdef"]
    table.write_text("text,n\n" + "".join(f"{text},{n}\n" for n in range(4) for text in texts))
    ask = (table, "-p", "{text} {n}?", "-m", tokenizer_folder, "--order", "original")
    small = hit_rate_of(*ask, "--capacity", 1500)
    assert small < hit_rate_of(*ask, "--capacity", 1500, "--eviction", "batch") < hit_rate_of(*ask)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--capacity", "3", "--dry-run"], "a cache holds a block"),
        (["--capacity", "3000"], "for --dry-run"),
        (["--eviction", "mru", "-m", "m"], f"one of {', '.join(EVICTIONS)}"),
        (["--eviction", "mru", "--dry-run"], f"one of {', '.join(EVICTIONS)}"),
        (["--token-exact", "-m", "m", "--engine-arg", "scheduler_cls=x"], "exclude each other"),
        (["--token-exact", "--base-url", "http://localhost:1/v1"], "vllm-relational serve"),
    ],
)
def test_options_of_cache_and_scheduler_that_cannot_be(table, options, words):
    assert words in error_of(table, "-p", "{text}?", *options)


def test_a_dry_run_needs_no_model_and_writes_a_report(table, tmp_path):
    result = run(table, "-p", "{*}?", "--dry-run", "--report", tmp_path / "r.html")
    assert result.exit_code == 0
    assert "</html>" in (tmp_path / "r.html").read_text()


def test_a_dry_run_sees_prompts_too_long(table, tokenizer_folder):
    result = run(table, "-p", "{text}?", "-m", tokenizer_folder, "--dry-run", "--engine-arg", "max_model_len=10")
    assert result.exit_code == 1 and "too long" in result.stderr


# --------------------------------------------------------------------------------------------------- asking
def test_every_row_answered_is_status_0(table, tmp_path, cli_engine):
    output = tmp_path / "out.csv"
    result = run(table, "-p", "{text}?", "-o", output)
    assert result.exit_code == 0 and result.stdout == ""
    assert read_table(output)["answer"].to_pylist() == ["good", "bad", "good"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.csv.job.json", "t.csv"]


def test_without_output_json_lines_go_to_standard_output(table, cli_engine):
    lines = run(table, "-p", "{text}?").stdout.splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["good", "bad", "good"]


def test_some_rows_failed_is_status_1_and_the_checkpoint_stays(table, tmp_path, cli_engine):
    cli_engine.fails = {1}
    output = tmp_path / "out.jsonl"
    result = run(table, "-p", "{text}?", "-o", output)
    assert result.exit_code == 1 and "--resume" in result.stderr
    assert [row["error"] is None for row in read_table(output).to_pylist()] == [True, False, True]
    cli_engine.fails, cli_engine.asked = set(), []
    assert run(table, "-p", "{text}?", "-o", output, "--resume").exit_code == 0
    assert [prompt.key for prompt in cli_engine.asked] == [1]


def test_a_dead_engine_is_status_2_and_says_how_to_go_on(table, tmp_path, cli_engine):
    cli_engine.dies_after = 1
    message = [
        line for line in run(table, "-p", "{text}?", "-o", tmp_path / "o.csv").stderr.splitlines() if "error" in line
    ]
    assert len(message) == 1 and "1 answers are in" in message[0] and "--resume" in message[0]


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        (["--choices", "good, bad"], ["good", "bad", "good"]),
        (["--choices", '["good", "bad"]'], ["good", "bad", "good"]),
        (["--limit", "2"], ["good", "bad"]),
        (["--answer-column", "a", "--error-column", "e", "--order", "original"], ["good", "bad", "good"]),
    ],
)
def test_options(table, tmp_path, cli_engine, options, answers):
    output = tmp_path / "out.parquet"
    assert run(table, "-p", "{text}?", "-o", output, *options).exit_code == 0
    column = options[1] if options[0] == "--answer-column" else "answer"
    assert read_table(output)[column].to_pylist() == answers


# ------------------------------------------------------------------------------------------------------ one-line errors
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-p", "{nope}?"], "names the column 'nope'"),
        (["-p", "no column"], "names no column"),
        (["-p", ""], "prompt is empty"),
        (["-p", "{text}?", "--choices", "yes"], "at least two"),
        (["-p", "{text}?", "--choices", "yes,"], "none of them empty"),
        (["-p", "{text}?", "--choices", "[yes"], "--choices is not a JSON list"),
        (["-p", "{text}?", "--range", "5"], "two whole numbers"),
        (["-p", "{text}?", "--range", "5,1"], "low must be below high"),
        (["-p", "{text}?", "--choices", "a,b", "--range", "1,5"], "exclude each other"),
        (["-p", "{text}?", "--schema", "no-such-file.json"], "no-such-file.json"),
        (["-p", "{text}?", "--max-tokens", "0"], "max_tokens is 0"),
        (["-p", "{text}?", "--order", "best"], "no order 'best'"),
        (["-p", "{text}?", "--pin", "nope"], "pin names"),
        (["-p", "{text}?", "--nulls", "drop"], "nulls is 'drop'"),
        (["-p", "{text}?", "--on-error", "ignore"], "on_error is 'ignore'"),
        (["-p", "{text}?", "--limit", "0"], "--limit is 0"),
        (["-p", "{text}?", "--engine-arg", "novalue"], "NAME=VALUE"),
        (["-p", "{text}?", "--resume"], "resume needs a checkpoint"),
        (["-p", "{text}?", "--answer-column", "n"], "has a column 'n' already"),
        (["-p", "{text}?", "--answer-column", "x", "--error-column", "x"], "cannot share"),
        (["-p", "{text}?", "-o", "no/such/folder/out.csv"], "mkdir -p"),
        (["-p", "{text}?", "-o", "out.xlsx"], "unknown output format"),
    ],
)
def test_wrong_options(table, cli_engine, options, reason):
    assert reason in error_of(table, *options)
    assert cli_engine.asked == []


def test_no_model_and_no_server(table):
    assert "name a model" in error_of(table, "-p", "{text}?")


@pytest.mark.parametrize("content", ["not json", "[1]", '{"type": "nonsense"}'])
def test_bad_schema_files(table, tmp_path, cli_engine, content):
    (tmp_path / "schema.json").write_text(content)
    assert "JSON schema" in error_of(table, "-p", "{text}?", "--schema", tmp_path / "schema.json")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.csv", None, "does not exist"),
        ("empty.csv", b"", "is empty"),
        ("semicolons.csv", b"a;b\n1;2\n", "semicolons between its fields"),
        ("latin.csv", "a\nnaïve\n".encode("latin1"), "iconv"),
        ("t.parquet", b"nonsense nonsense", "cannot read"),
        ("t.xlsx", b"x", "unknown table format"),
    ],
)
def test_unreadable_tables(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = error_of(tmp_path / name, "-p", "{a}?", "--dry-run")
    assert name in message and reason in message


def test_a_table_that_may_not_be_read(table, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("vllm_relational.table.read._reader_of", lambda path: refuse)  # root may read everything
    assert "Permission denied" in error_of(table, "-p", "{text}?", "--dry-run")


def test_an_answer_column_that_exists_is_found_before_asking(tmp_path, cli_engine):
    (tmp_path / "t.csv").write_text("answer\nx\n")
    assert "--answer-column" in error_of(tmp_path / "t.csv", "-p", "{answer}?")
    assert cli_engine.asked == []


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_model_that_does_not_exist(table, options, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # set by the environment at its import
    message = error_of(table, "-p", "{text}?", "-m", "no/such-model", *options)
    assert message.startswith("error: the model 'no/such-model' is neither")


def test_wrong_usage_is_status_2():
    assert run("--no-such-option").exit_code == 2


def test_bench_compares_orders_and_appends_lines(table, tmp_path, cli_engine):
    lines = tmp_path / "bench.csv"
    result = CliRunner().invoke(app, ["bench", str(table), "-p", "{*}?", "--csv", str(lines)])
    assert result.exit_code == 0, result.output
    assert read_table(lines)["order"].to_pylist() == ["original", "fixed", "tree"]
    again = CliRunner().invoke(app, ["bench", str(table), "-p", "{*}?", "--csv", str(lines), "--orders", "original"])
    assert again.exit_code == 0, again.output
    assert read_table(lines)["order"].to_pylist() == ["original", "fixed", "tree", "original"]


def test_bench_appends_to_no_file_of_another_kind(table, tmp_path, cli_engine):
    """Known before anything is asked; the file stays as it is."""
    swapped = [FIELDS[1], FIELDS[0], *FIELDS[2:]]
    headers = ["id,text", ",".join(FIELDS[:-1]), ",".join([*FIELDS, "more"]), ",".join(swapped)]
    whole = ",".join(FIELDS).encode()
    for content in [
        *(f"{header}\n1,mine\n".encode() for header in headers),
        b"",
        b"\xff\xfe\x00",
        b"x" * 200_000,
        whole + b"\n1,2",
    ]:
        lines = tmp_path / "mine.csv"
        lines.write_bytes(content)
        result = CliRunner().invoke(app, ["bench", str(table), "-p", "{*}?", "--csv", str(lines)])
        assert result.exit_code != 0
        assert "cannot append to" in result.output and "another file" in " ".join(result.output.split())
        assert lines.read_bytes() == content
        assert not cli_engine.asked


def test_bench_says_which_column_is_another(tmp_path):
    lines = tmp_path / "older.csv"
    lines.write_text(",".join(FIELDS[:-1]) + "\n")
    with pytest.raises(RelationalError, match=f"column {len(FIELDS)} is missing, .* have 'same_answers'"):
        check_csv(lines, FIELDS)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RelationalError, match="no regular file"):
        check_csv(tmp_path / "pipe", FIELDS)


def test_bench_writes_answers_and_lines_to_two_files(table, tmp_path, cli_engine):
    both = str(tmp_path / "both.csv")
    result = CliRunner().invoke(app, ["bench", str(table), "-p", "{*}?", "--csv", both, "-o", both])
    assert result.exit_code != 0 and "name two files" in " ".join(result.output.split())
    assert not cli_engine.asked


def test_bench_within_a_budget_reads_the_table_once_to_choose_the_rows(tmp_path, cli_engine, monkeypatch):
    (tmp_path / "t.csv").write_text("text,n\n" + "".join(f"row,{n}\n" for n in range(40)))
    prepared = []
    prepare = RelationalLLM.prepare
    monkeypatch.setattr(RelationalLLM, "prepare", lambda *a, **k: prepared.append(1) or prepare(*a, **k))
    arguments = ["bench", str(tmp_path / "t.csv"), "-p", "{*}?", "--orders", "original,fixed", "--budget", "1000"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "40 of 40 rows fit into 1000 s" in result.stderr
    assert len(prepared) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--engine-arg", "tokenizer=x"], "--tokenizer"),
        (["--engine-arg", "max model=1"], "NAME=VALUE"),
        (["--choices", '["a", null]'], "label 2 is None: give a text"),
        (["--report", "/nowhere/r.html"], "folder"),
        (["--base-url", "http://127.0.0.1:9/v1", "--engine-arg", "bogus=1"], "api_key"),
    ],
)
def test_options_are_checked_before_anything_is_asked(table, options, reason):
    assert reason in error_of(table, "-p", "{text}?", *options)


def test_a_finished_job_is_not_asked_again_by_resume(table, tmp_path, cli_engine):
    output = tmp_path / "out.csv"
    assert run(table, "-p", "{text}?", "-o", output).exit_code == 0
    asked = len(cli_engine.asked)
    again = run(table, "-p", "{text}?", "-o", output, "--resume")
    assert again.exit_code == 0 and "nothing to resume" in again.stderr and len(cli_engine.asked) == asked


# -------------------------------------------------------------------------------------------------------- plan
def test_plan_compares_planners_as_json(table, tokenizer_folder):
    result = run_cli("plan", table, "-m", tokenizer_folder, "--json", "--planner", "original,fixed")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0 and [line["planner"] for line in lines] == ["original", "fixed"]
    assert all(line["token_counts"] == "exact" and line["rows"] == 3 for line in lines)
    assert {"seconds", "prompt_tokens", "hit_tokens", "hit_rate", "hit_rate_chars", "ceiling", "repeated_chars"} <= set(
        lines[0]
    )


def test_plan_names_dependencies_in_json(table):
    line = json.loads(run_cli("plan", table, "--json", "--planner", "fixed").stdout)
    assert isinstance(line["dependencies"], list)
    for dependency in line["dependencies"]:
        assert set(dependency) == {"determinants", "dependents", "share"}


def test_plan_shows_the_planners_and_what_rows_share(table):
    result = run_cli("plan", table, "--budget", "0.1")
    assert result.exit_code == 0 and result.stderr == ""
    for shown in ("3 rows (2 distinct) x 2 columns", "tree", "tokens saved", "the question", "Columns found dependent"):
        assert shown in result.stdout, shown


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_plan_draws_a_page(table, tmp_path, more):
    pytest.importorskip("plotly")
    page = tmp_path / "tree.html"
    result = run_cli("plan", table, "--html", page, *more)
    assert result.exit_code == 0 and str(page) in result.stderr and str(page) not in result.stdout
    assert "t.csv" in page.read_text() and "</html>" in page.read_text()


def test_plan_looks_for_plotly_before_it_plans(table, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setattr("vllm_relational.compare.planners.compare_planners", None)
    result = run_cli("plan", table, "--html", tmp_path / "tree.html")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"error: {tmp_path}/tree.html is drawn with plotly: pip install 'vllm-relational[report]'"
    ]


def test_plan_counts_characters_over_all_rows(tmp_path):
    (tmp_path / "t.csv").write_text("long,short\naaaaaaaa,x\naaaaaaaa,y\nbbbbbbbb,x\nbbbbbbbb,y\n")
    result = run_cli("plan", tmp_path / "t.csv", "--json", "--planner", "fixed")
    assert json.loads(result.stdout)["hit_rate_chars"] == round(16 / 36, 4)


def test_a_small_cache_serves_less(tmp_path):
    rows = "".join(f"{i % 4}{' long' * 40},{i}\n" for i in range(40))
    (tmp_path / "t.csv").write_text(f"text,n\n{rows}")
    roomy, small = (
        json.loads(run_cli("plan", tmp_path / "t.csv", "--json", "--planner", "original", *more).stdout)
        for more in ([], ["--capacity", "192"])
    )
    assert small["hit_tokens"] < roomy["hit_tokens"]
    assert roomy["hit_rate_bound"] is None
    assert small["hit_rate"] < small["hit_rate_bound"] <= roomy["hit_rate"]


def test_the_measure_in_characters_knows_the_constraints(tmp_path):
    (tmp_path / "t.csv").write_text("id,text\n" + "".join(f"{i},{'x' * 40}\n" for i in range(4)))
    free, pinned = (
        json.loads(run_cli("plan", tmp_path / "t.csv", "--json", "--planner", "tree", *options).stdout)
        for options in ([], ["--pin", "id"])
    )
    assert free["hit_rate_chars"] > 0.7
    assert pinned["hit_rate_chars"] == 0
    assert (free["rows"], free["distinct_rows"]) == (4, 4)


def test_plan_says_where_it_cannot_write_before_it_plans(table):
    pytest.importorskip("plotly")
    result = run_cli("plan", table, "--planner", "original", "--html", "/proc/tree.html")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and "/proc/tree.html" in result.stderr


def test_plan_keeps_orders_and_weighs_columns(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c\n" + "".join(f"{i},{'x' * 40},{'y' * 20}\n" for i in range(4)))

    def order(*options: str) -> list[str]:
        result = run_cli("plan", tmp_path / "t.csv", "--json", "--planner", "tree", *options)
        return json.loads(result.stdout)["field_order"]

    assert order()[-1] == "a"
    kept = order("--keep-order", "b,a")
    assert kept.index("a") < kept.index("b")
    assert order("--weight", "b=0", "--weight", "c=3") == ["c", "b", "a"]


def test_the_layout_says_what_prompts_begin_with(tmp_path, table):
    hits, planned = {}, {}
    for layout in ("question-first", "row-first"):
        options = ["-p", "Is {text} a good text?", "--layout", layout]
        assert run_cli("run", table, *options, "--dry-run", "--report", tmp_path / "r.json").exit_code == 0
        report = json.loads((tmp_path / "r.json").read_text())
        assert report["layout"] == layout
        hits[layout] = report["predicted"]["hit_tokens"]
        planned[layout] = json.loads(run_cli("plan", table, *options, "--planner", "tree", "--json").stdout)[
            "hit_tokens"
        ]
    assert hits["question-first"] > hits["row-first"] and hits == planned
    result = run_cli("run", table, "-p", "{text}?", "--dry-run", "--layout", "last")
    assert result.exit_code == 2 and "layout is 'last': use one of question-first, row-first" in result.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--keep-order", "a"], "two columns or more"),
        (["--keep-order", "a,z"], "names the column 'z', which the table does not have"),
        (["--weight", "a"], "write COLUMN=NUMBER"),
        (["--weight", "a=-1"], "the weight of column 'a' is -1.0: give 0 to 1000"),
        (["--weight", "z=1"], "names the column 'z', which the table does not have"),
    ],
)
def test_plan_refuses_constraints_that_make_no_sense(tmp_path, options, reason):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    result = run_cli("plan", tmp_path / "t.csv", *options)
    assert result.exit_code == 2 and reason in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--planner", "best"], "best"),
        (["--columns", "nothing"], "nothing"),
        (["--capacity", "0"], "--capacity"),
        (["-p", "{text}", "--columns", "text"], "exclude"),
        (["--budget", "-1"], "the budget is -1 seconds: give 0 to 86,400"),
        (["--budget", "1", "--planner", "fixed,ggr"], "--budget is for the planner tree: name it with --planner"),
        (["--html", "/no/such/folder/t.html"], "mkdir -p /no/such/folder"),
        (["--html", "/"], "it is a folder; name a file in it"),
        (["--planner", "[]"], "names no planner"),
    ],
)
def test_plan_refuses_in_one_line(table, options, reason):
    result = run_cli("plan", table, *options)
    assert result.exit_code == 2 and reason in result.stderr and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
