"""``--resume`` continues this job: an output of another job, of none, or of other rows is never complete."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_engine import FakeEngine
from typer.testing import CliRunner

from vllm_relational import RelationalLLM
from vllm_relational.cli.app import app
from vllm_relational.table import read_table, write_table

FORMATS = ["csv", "tsv", "jsonl", "parquet", "arrow"]
QUESTION = ("-p", "good {text}?", "--choices", "yes,no")


@pytest.fixture
def engine(monkeypatch) -> FakeEngine:
    made = FakeEngine(lambda row: "no" if "3" in row.get("text", "") else "yes")
    monkeypatch.setattr("vllm_relational.llm._make_engine", lambda *_: made)
    return made


def write_rows(path: Path, *rows: int) -> Path:
    path.write_text("text,id\n" + "".join(f'"row {row}, ""so""",{row}\n' for row in rows))
    return path


@pytest.fixture
def table(tmp_path) -> Path:
    return write_rows(tmp_path / "t.csv", *range(20))


def run(*arguments: object):
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


def error_of(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    (line,) = result.stderr.splitlines()
    return line


def asked(engine: FakeEngine) -> list[int]:
    found = [prompt.key for prompt in engine.asked]
    engine.asked.clear()
    return sorted(found)


def answers(output: Path) -> list[str | None]:
    return read_table(output)["answer"].to_pylist()


def expected(*rows: int) -> list[str]:
    return ["no" if "3" in str(row) else "yes" for row in rows]


@pytest.mark.parametrize("kind", FORMATS)
def test_more_rows_of_one_question_are_the_only_ones_asked(tmp_path, table, engine, kind):
    output = tmp_path / f"o.{kind}"
    assert run(table, *QUESTION, "-o", output, "--limit", 10).exit_code == 0
    assert asked(engine) == list(range(10))
    assert run(table, *QUESTION, "-o", output, "--resume").exit_code == 0
    assert asked(engine) == list(range(10, 20)) and answers(output) == expected(*range(20))
    again = run(table, *QUESTION, "-o", output, "--resume")
    assert again.exit_code == 0 and "nothing to resume" in again.stderr and asked(engine) == []
    assert answers(output) == expected(*range(20))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    "rows",
    [range(5, 30), range(19, -1, -1), range(7), [*range(3), 50, *range(3, 20)]],
    ids=["moved", "turned", "fewer", "inserted"],
)
def test_answers_go_by_the_cells_not_by_the_place(tmp_path, table, engine, kind, rows):
    output = tmp_path / f"o.{kind}"
    run(table, *QUESTION, "-o", output)
    asked(engine)
    write_rows(table, *rows)
    lost = sum(row not in rows for row in range(20))
    if lost:
        line = error_of(table, *QUESTION, "-o", output, "--resume")
        assert f"answers {lost} rows that this table does not have" in line and "--overwrite" in line
        assert answers(output) == expected(*range(20)) and asked(engine) == []
    drop = ["--overwrite"] if lost else []
    assert run(table, *QUESTION, "-o", output, "--resume", *drop).exit_code == 0
    assert len(asked(engine)) == sum(row not in range(20) for row in rows)
    assert answers(output) == expected(*rows)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("-p", "bad {text}?"), "prompt"),
        (("--choices", "yes,no,maybe"), "answer form"),
        (("--system-prompt", "Be brief."), "system prompt"),
        (("--layout", "row-first"), "layout"),
        (("--dedup", "normalized"), "deduplication"),
        (("-p", "good {text} {id}?"), "prompt, table"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("resume", [("--resume",), ()])
def test_another_question_is_another_job(tmp_path, table, engine, change, named, resume):
    output = tmp_path / "o.csv"
    run(table, *QUESTION, "-o", output)
    asked(engine)
    before = output.read_bytes()
    line = error_of(table, *QUESTION, *change, "-o", output, *resume)
    assert f"written by another job (not the same: {named.removesuffix(', table') if resume else named})" in line
    assert "--overwrite" in line
    assert asked(engine) == [] and output.read_bytes() == before
    assert run(table, *QUESTION, *change, "-o", output, "--overwrite", *resume).exit_code == 0
    assert asked(engine) == list(range(20))


def test_another_model_is_another_job(tmp_path, table, engine):
    output = tmp_path / "o.parquet"
    run(table, *QUESTION, "-o", output, "--limit", 5)
    asked(engine)
    engine.model = "other"
    assert "not the same: model" in error_of(table, *QUESTION, "-o", output, "--resume")
    assert asked(engine) == [] and len(answers(output)) == 5


@pytest.mark.parametrize("resume", [("--resume",), ()])
@pytest.mark.parametrize("content", ["answer,text\nyes,a\n", "\n", '{"job": 1}'])
def test_a_file_of_no_job_is_kept(tmp_path, table, engine, content, resume):
    output = tmp_path / "o.csv"
    output.write_text(content)
    line = error_of(table, *QUESTION, "-o", output, *resume)
    assert "no job wrote it" in line and "--overwrite" in line
    assert output.read_text() == content and asked(engine) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_an_empty_file_is_no_answer(tmp_path, table, engine, kind):
    output = tmp_path / f"o.{kind}"
    output.touch()
    assert run(table, *QUESTION, "-o", output, "--resume").exit_code == 0
    assert asked(engine) == list(range(20)) and answers(output) == expected(*range(20))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_output_that_was_edited_is_not_taken_for_the_jobs(tmp_path, table, engine, kind):
    output = tmp_path / f"o.{kind}"
    run(table, *QUESTION, "-o", output)
    asked(engine)
    edited = output.read_text().replace("row 7", "row 8")
    output.write_text(edited)
    assert "no job wrote it as it is now" in error_of(table, *QUESTION, "-o", output, "--resume")
    assert output.read_text() == edited and asked(engine) == []


def test_a_parquet_output_that_was_edited_is_not_taken_for_the_jobs(tmp_path, table, engine):
    output = tmp_path / "o.parquet"
    run(table, *QUESTION, "-o", output)
    asked(engine)
    whole = pq.read_table(output)
    turned = pa.array([{"yes": "no", "no": "yes"}[text] for text in whole["answer"].to_pylist()])
    for edited in (
        pa.concat_tables([whole.slice(0, 4), whole.slice(6)]),
        whole.set_column(whole.column_names.index("answer"), "answer", turned),
    ):
        pq.write_table(edited, output)
        assert "no job wrote it as it is now" in error_of(table, *QUESTION, "-o", output, "--resume")
        assert pq.read_table(output).equals(edited) and asked(engine) == []


def test_the_same_job_may_be_asked_again_without_more_words(tmp_path, table, engine):
    output = tmp_path / "o.csv"
    for _ in range(2):
        assert run(table, *QUESTION, "-o", output).exit_code == 0
        assert asked(engine) == list(range(20)) and answers(output) == expected(*range(20))
    line = error_of(table, *QUESTION, "-o", output, "--limit", 5)
    assert "ask only the rows that are new with --resume" in line and asked(engine) == []


@pytest.mark.parametrize("checkpoint_lost", [False, True])
def test_failed_rows_are_asked_again_and_then_it_is_complete(tmp_path, table, engine, checkpoint_lost):
    output = tmp_path / "o.csv"
    engine.fails = {4, 13}
    assert run(table, *QUESTION, "-o", output).exit_code == 1
    asked(engine)
    if checkpoint_lost:
        (tmp_path / "o.csv.checkpoint.jsonl").unlink()
    engine.fails = {13}
    assert run(table, *QUESTION, "-o", output, "--resume").exit_code == 1
    assert asked(engine) == [4, 13]
    engine.fails = set()
    assert run(table, *QUESTION, "-o", output, "--resume").exit_code == 0
    assert asked(engine) == [13] and answers(output) == expected(*range(20))
    assert not (tmp_path / "o.csv.checkpoint.jsonl").exists()


def test_more_rows_after_some_failed(tmp_path, table, engine):
    output = tmp_path / "o.csv"
    engine.fails = {2}
    assert run(table, *QUESTION, "-o", output, "--limit", 10).exit_code == 1
    asked(engine)
    engine.fails = set()
    assert run(table, *QUESTION, "-o", output, "--resume").exit_code == 0
    assert asked(engine) == [2, *range(10, 20)] and answers(output) == expected(*range(20))


def test_a_checkpoint_that_knows_more_than_the_output_is_not_given_up(tmp_path, table, engine):
    output, checkpoint = tmp_path / "o.csv", tmp_path / "o.csv.checkpoint.jsonl"
    engine.fails = {2, 3}
    run(table, *QUESTION, "-o", output, "--limit", 10)
    engine.fails, engine.dies_after = set(), 1
    assert run(table, *QUESTION, "-o", output, "--limit", 10, "--resume").exit_code == 2
    engine.dies_after = None
    before = checkpoint.read_bytes()
    asked(engine)
    assert "not the same: table" in error_of(table, *QUESTION, "-o", output, "--resume")
    assert asked(engine) == [] and checkpoint.read_bytes() == before


def test_an_interrupted_extension_goes_on(tmp_path, table, engine):
    output = tmp_path / "o.csv"
    run(table, *QUESTION, "-o", output, "--limit", 10)
    asked(engine)
    engine.dies_after = 4
    assert run(table, *QUESTION, "-o", output, "--resume").exit_code == 2
    first, engine.dies_after = asked(engine), None
    assert run(table, *QUESTION, "-o", output, "--resume").exit_code == 0
    assert len(first) - 1 + len(asked(engine)) == 10 and answers(output) == expected(*range(20))


def test_numbers_objects_and_odd_texts_come_back_as_they_were(tmp_path, engine):
    table = tmp_path / "t.jsonl"
    lines = [json.dumps({"text": f"row {row}", "other": {"a": row}}) + "\n" for row in range(6)]
    table.write_text("".join(lines[:3]))
    options = {
        "range": (("--range", "1,50"), lambda row: "42"),
        "text": ((), lambda row: ["null", "007", ' x,\n"y" '][int(row["text"][-1]) % 3]),
        "object": (("--schema", tmp_path / "s.json"), lambda row: '{"n": [1, 2.5, "é"]}'),
    }
    (tmp_path / "s.json").write_text('{"type": "object"}')
    for name, (option, engine.answer) in options.items():
        for kind in ("csv", "jsonl", "parquet"):
            whole, grown = tmp_path / f"{name}-whole.{kind}", tmp_path / f"{name}.{kind}"
            table.write_text("".join(lines[:3]))
            assert run(table, "-p", "{text}?", *option, "-o", grown).exit_code == 0
            table.write_text("".join(lines))
            assert run(table, "-p", "{text}?", *option, "-o", whole).exit_code == 0
            asked(engine)
            assert run(table, "-p", "{text}?", *option, "-o", grown, "--resume").exit_code == 0
            assert asked(engine) == [3, 4, 5] and read_table(grown).equals(read_table(whole))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_answers_that_were_cut_stay_marked(tmp_path, table, engine, monkeypatch, kind):
    output = tmp_path / f"o.{kind}"
    whole = engine._complete
    monkeypatch.setattr(engine, "_complete", lambda prompt: replace(whole(prompt), cut=prompt.key == 4))
    assert run(table, "-p", "{text}?", "-o", output, "--limit", 10).exit_code == 0
    asked(engine)
    assert run(table, "-p", "{text}?", "-o", output, "--resume").exit_code == 0
    assert asked(engine) == list(range(10, 20))
    assert [row for row, status in enumerate(read_table(output)["status"].to_pylist()) if status != "ok"] == [4]
    assert "nothing to resume" in run(table, "-p", "{text}?", "-o", output, "--resume").stderr


def test_a_kill_between_the_record_and_the_output_leaves_both_usable(tmp_path, table, engine, monkeypatch):
    output = tmp_path / "o.csv"
    run(table, *QUESTION, "-o", output, "--limit", 10)
    asked(engine)
    before = output.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda self, target: _killed() if target == output else rename(self, target))
    assert isinstance(run(table, *QUESTION, "-o", output, "--resume").exception, KeyboardInterrupt | SystemExit)
    monkeypatch.undo()
    monkeypatch.setattr("vllm_relational.llm._make_engine", lambda *_: engine)
    assert output.read_bytes() == before and asked(engine) == list(range(10, 20))
    assert run(table, *QUESTION, "-o", output, "--resume").exit_code == 0
    assert asked(engine) == [] and answers(output) == expected(*range(20))


def test_a_kill_before_the_checkpoint_is_deleted(tmp_path, table, engine):
    output, checkpoint = tmp_path / "o.csv", tmp_path / "o.csv.checkpoint.jsonl"
    engine.dies_after = 15
    run(table, *QUESTION, "-o", output)
    left, engine.dies_after = checkpoint.read_bytes(), None
    run(table, *QUESTION, "-o", output, "--resume")
    checkpoint.write_bytes(left)
    assert "nothing to resume" in run(table, *QUESTION, "-o", output, "--resume").stderr
    assert not checkpoint.exists()


def test_an_output_that_another_wrote_meanwhile_is_kept_and_so_are_the_answers(tmp_path, table, engine):
    output, checkpoint = tmp_path / "o.csv", tmp_path / "o.csv.checkpoint.jsonl"
    engine.answer = lambda row: output.write_text("another's") and "yes"
    line = error_of_last_line(table, *QUESTION, "-o", output)
    assert "written by another process since" in line and str(checkpoint) in line
    assert output.read_text() == "another's"
    asked(engine)
    other = tmp_path / "other.csv"
    assert run(table, *QUESTION, "-o", other, "--resume", "--checkpoint", checkpoint).exit_code == 0
    assert asked(engine) == [] and answers(other) == ["yes"] * 20


def error_of_last_line(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output
    return result.stderr.splitlines()[-1]


def test_a_file_under_the_name_of_the_record_is_kept(tmp_path, table, engine):
    (tmp_path / "o.csv.job.json").write_text('{"mine": 1}')
    assert "is no record of an output" in error_of(table, *QUESTION, "-o", tmp_path / "o.csv")
    assert (tmp_path / "o.csv.job.json").read_text() == '{"mine": 1}' and asked(engine) == []


rename = Path.replace


def _killed() -> None:
    raise KeyboardInterrupt


def test_an_output_that_is_read_as_a_table_gives_no_record_away(tmp_path, table, engine):
    output = tmp_path / "o.parquet"
    run(table, *QUESTION, "-o", output)
    copy = tmp_path / "copy.parquet"
    write_table(read_table(output).rename_columns(["text", "id", "first", "reason", "state"]), copy)
    second = tmp_path / "second.parquet"
    assert run(copy, "-p", "sure about {first}?", "--choices", "yes,no", "-o", second).exit_code == 0
    assert RelationalLLM  # the record is the second job's
    record = json.loads(pq.read_schema(second).metadata[b"vllm_relational.job"])
    assert record["job"]["prompt"] == "sure about {first}?" and record["used"] == ["first"]


def test_a_limit_does_not_drop_the_answers_of_the_other_rows(tmp_path, table, engine):
    output = tmp_path / "o.csv"
    assert run(table, *QUESTION, "-o", output).exit_code == 0
    before, _ = output.read_bytes(), asked(engine)
    line = error_of(table, *QUESTION, "-o", output, "--limit", 5, "--resume")
    assert "answers 15 rows that this table does not have" in line
    assert output.read_bytes() == before and asked(engine) == []


# ---------------------------------------------------------------------------------------- complete, but to be written
@pytest.fixture
def no_engine(engine, monkeypatch):
    """Called once the first run is over: from then on no engine can be made."""

    def forbid() -> None:
        asked(engine)
        monkeypatch.setattr("vllm_relational.llm._make_engine", lambda *_: pytest.fail("an engine was made"))

    return forbid


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("options", "columns"),
    [
        (("--answer-column", "verdict"), ["verdict", "error", "status"]),
        (("--error-column", "why"), ["answer", "why", "status"]),
        (("--status-column", "state"), ["answer", "error", "state"]),
        (("--explain-dedup", "source"), ["answer", "error", "status", "source", "source_how"]),
    ],
)
def test_a_complete_output_gets_the_columns_of_this_run_without_a_question(
    tmp_path, table, engine, no_engine, kind, options, columns
):
    output = tmp_path / f"o.{kind}"
    run(table, *QUESTION, "-o", output)
    no_engine()
    again = run(table, *QUESTION, *options, "-o", output, "--resume")
    assert again.exit_code == 0 and f"{output} answers every row" in again.stderr and asked(engine) == []
    written = read_table(output)
    assert written.column_names == ["text", "id", *columns] and written[columns[0]].to_pylist() == expected(*range(20))
    if "--explain-dedup" in options:
        assert set(written["source_how"].to_pylist()) == {"resumed"}
    back = run(table, *QUESTION, "-o", output, "--resume")
    assert back.exit_code == 0 and answers(output) == expected(*range(20)) and asked(engine) == []


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_other_columns_of_the_table_are_written_as_they_are_now(tmp_path, table, engine, no_engine, kind):
    output = tmp_path / f"o.{kind}"
    run(table, *QUESTION, "-o", output)
    no_engine()
    table.write_text("".join(f"{line},new{place}\n" for place, line in enumerate(table.read_text().splitlines())))
    assert run(table, *QUESTION, "-o", output, "--resume").exit_code == 0
    assert read_table(output)["new0"].to_pylist() == [f"new{row}" for row in range(1, 21)]
    write_rows(table, *range(20))
    table.write_text(table.read_text().replace(",7\n", ",700\n"))
    assert run(table, *QUESTION, "-o", output, "--resume").exit_code == 0
    written = read_table(output)
    assert written.column_names == ["text", "id", "answer", "error", "status"]
    assert str(written["id"][7].as_py()) == "700" and answers(output) == expected(*range(20))


def test_rows_in_another_order_need_no_engine(tmp_path, table, engine, no_engine):
    output = tmp_path / "o.csv"
    run(table, *QUESTION, "-o", output)
    no_engine()
    write_rows(table, *range(19, -1, -1))
    assert run(table, *QUESTION, "-o", output, "--resume").exit_code == 0
    assert answers(output) == expected(*range(19, -1, -1))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_report_of_a_complete_output_is_written_and_the_output_left_alone(tmp_path, table, engine, no_engine, kind):
    output, report = tmp_path / f"o.{kind}", tmp_path / "r.json"
    run(table, *QUESTION, "-o", output)
    no_engine()
    before = (output.read_bytes(), output.stat().st_ino)
    again = run(table, *QUESTION, "-o", output, "--resume", "--report", report)
    assert again.exit_code == 0 and "nothing to resume" in again.stderr
    found = json.loads(report.read_text())
    assert found["num_asked"] == 0 and found["num_resumed"] == found["num_rows"] == 20 and found["model"] == "fake"
    assert (output.read_bytes(), output.stat().st_ino) == before


def test_an_audit_of_a_complete_output_asks_for_the_audit_alone(tmp_path, table, engine):
    output = tmp_path / "o.csv"
    run(table, *QUESTION, "-o", output)
    asked(engine)
    assert run(table, *QUESTION, "-o", output, "--resume", "--audit", 3).exit_code == 0
    assert len(asked(engine)) == 3 and answers(output) == expected(*range(20))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_cut_answers_and_objects_keep_their_marks_in_new_columns(tmp_path, table, engine, no_engine, kind):
    output, schema = tmp_path / f"o.{kind}", tmp_path / "s.json"
    schema.write_text('{"type": "object"}')
    engine.answer = lambda row: '{"n": [1, 2.5, "é"]}'
    question = ("-p", "good {text}?", "--schema", schema)
    run(table, *question, "-o", output)
    before = answers(output)
    assert run(table, *question, "-o", output, "--resume", "--answer-column", "a").exit_code == 0
    assert read_table(output)["a"].to_pylist() == before
    engine.answer, engine.cuts = (lambda row: "half a"), {4}
    assert run(table, "-p", "{text}?", "-o", output, "--overwrite").exit_code == 0
    no_engine()
    assert run(table, "-p", "{text}?", "-o", output, "--resume", "--status-column", "s").exit_code == 0
    assert [row for row, state in enumerate(read_table(output)["s"].to_pylist()) if state == "cut"] == [4]


def test_a_run_without_an_answer_leaves_no_checkpoint_and_names_none(tmp_path, table, engine):
    output = tmp_path / "o.csv"
    engine.dies_after = 0
    line = error_of_last_line(table, *QUESTION, "-o", output)
    assert "no row was answered" in line and "checkpoint" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    engine.dies_after, engine.fails = None, set(range(20))
    result = run(table, *QUESTION, "-o", output)
    assert result.exit_code == 1 and "answers are kept" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.csv", "o.csv.job.json", "t.csv"]
    engine.fails = set()
    assert run(table, *QUESTION, "-o", output, "--resume").exit_code == 0 and answers(output) == expected(*range(20))
