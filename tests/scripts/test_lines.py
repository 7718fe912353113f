"""The files to which benchmarks append: checked before anything is measured, and of the columns that they write."""

import argparse
import ast
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))
from lines import check_lines

from vllm_relational.compare import orders as bench

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
APPENDING = {"dipr_engine", "dipr_kernels", "dipr_quality", "kv", "orders", "partial_reuse", "rag"}
APPENDING |= {"semantic_dedup", "sql_explain"}
APPENDING |= {"context_search", "context_store", "context_transformers", "context_vllm"}
FILES = {"dipr_kernels": "dipr", "dipr_quality": None}  # the latter's answers are not kept here


def source_of(name):
    return (BENCH / f"{name}.py").read_text(encoding="utf-8")


def fields_of(name):
    """The columns, as the script says them without being run."""
    if name == "orders":
        return bench.FIELDS
    found = ()
    for node in ast.parse(source_of(name)).body:
        targets = [node.target] if isinstance(node, ast.AugAssign) else getattr(node, "targets", [])
        if any(getattr(target, "id", None) == "FIELDS" for target in targets):
            found += ast.literal_eval(node.value)
    return found


def test_every_script_that_appends_is_known():
    found = {path.stem for path in BENCH.glob("*.py") if "append_csv" in path.read_text() or '"a"' in path.read_text()}
    assert found == APPENDING


@pytest.mark.parametrize("name", sorted(APPENDING))
def test_it_checks_the_file_first_and_writes_the_columns_of_the_file_that_is_kept(name):
    assert "check_lines(" in source_of(name) or "check_csv(" in source_of(name)
    kept = FILES.get(name, name)
    if kept is not None:
        assert ",".join(fields_of(name)) == (BENCH / f"{kept}.csv").open().readline().rstrip("\n")


def test_a_file_of_other_columns_ends_the_script_before_it_measures(tmp_path, capsys):
    file = tmp_path / "mine.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as ended:
        check_lines(argparse.ArgumentParser(), file, ("a", "c"))
    assert ended.value.code == 2 and "its column 2 is 'b', where these measurements have 'c'" in capsys.readouterr().err
    assert file.read_text() == "a,b\n1,2\n"
    for fine in (None, tmp_path / "new.csv"):
        check_lines(argparse.ArgumentParser(), fine, ("a", "c"))
    check_lines(argparse.ArgumentParser(), file, ("a", "b"))


def test_a_script_appends_what_it_said(tmp_path, monkeypatch):
    import sql_explain

    file = tmp_path / "lines.csv"
    monkeypatch.setattr(sys, "argv", ["sql_explain.py", "--rows", "60", "--csv", str(file)])
    sql_explain.main()
    sql_explain.main()
    header, *lines = file.read_text().splitlines()
    assert header == ",".join(sql_explain.FIELDS) and len(lines) == 2
    assert json.loads(lines[0].split(",")[5]) == 60
