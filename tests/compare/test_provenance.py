"""Which code a measurement names: the commit of this package's own repository and of no other, else the version."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_relational.cli.app import app
from vllm_relational.compare import provenance
from vllm_relational.table import read_table

SOURCE = Path(provenance.__file__).parents[2]
VERSION = "9.8.7"


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: VERSION)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def repository(folder, *tracked):
    """A repository of these files with one commit; returns that."""
    git(folder, "init", "-q")
    git(folder, "add", "-f", *tracked)
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    return git(folder, "rev-parse", "--short", "HEAD")


def copy_into(folder, *files):
    """The module as code in that folder says it."""
    for file in {*files, "vllm_relational/compare/provenance.py"}:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / file, folder / file)
    spec = importlib.util.spec_from_file_location("copied", folder / "vllm_relational" / "compare" / "provenance.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_own_repository_names_the_commit(tmp_path, monkeypatch):
    there = copy_into(tmp_path, *provenance.TRACKED)
    commit = repository(tmp_path, *provenance.TRACKED)
    assert there.code_version() == commit
    other = tmp_path / "other"
    other.mkdir()
    repository(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook of that one
    assert there.code_version() == commit


@pytest.mark.parametrize("where", [".venv/lib/site-packages", "vendored", "."])
@pytest.mark.parametrize("tracked", [True, False])
def test_a_repository_that_holds_the_package_does_not(tmp_path, where, tracked):
    there = copy_into(tmp_path / where)
    (tmp_path / "setup.py").write_text("")  # the project's own
    repository(tmp_path, *([str(there.__file__)] if tracked else ["setup.py"]))
    assert there.code_version() == VERSION


def test_a_whole_copy_that_is_not_tracked_does_not(tmp_path):
    there = copy_into(tmp_path, *provenance.TRACKED)
    (tmp_path / "theirs").write_text("")
    repository(tmp_path, "theirs")
    assert there.code_version() == VERSION


def test_a_repository_without_a_commit_and_none_at_all(tmp_path):
    there = copy_into(tmp_path, *provenance.TRACKED)
    assert there.code_version() == VERSION
    git(tmp_path, "init", "-q")
    assert there.code_version() == VERSION


@pytest.mark.parametrize("tool", ["exit 128", "echo abc1234", "sleep 9", None])
def test_no_git_or_one_that_does_not_help(tmp_path, monkeypatch, tool):
    tools = tmp_path / "bin"
    tools.mkdir()
    if tool is not None:  # safe.directory refuses with 128
        (tools / "git").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin {tool}\n")
        (tools / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(provenance, "SECONDS", 0.2)
    assert provenance.code_version() == VERSION
    assert provenance.machine()


def test_without_an_installation(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert copy_into(tmp_path).code_version() == "unknown"


@pytest.mark.parametrize(("printed", "machine"), [("NVIDIA H200\nNVIDIA H200\n", "2 x NVIDIA H200"), ("", None)])
def test_the_machine(tmp_path, monkeypatch, printed, machine):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{printed}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.machine() == (machine or f"{os.cpu_count()} x {provenance._processor()}")


def test_bench_keeps_its_line_without_git(tmp_path, cli_engine, monkeypatch):
    (tmp_path / "t.csv").write_text("text,n\ngood,1\nbad,2\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    command = ["bench", str(tmp_path / "t.csv"), "-p", "{*}?", "--orders", "tree", "--csv", str(tmp_path / "b.csv")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert read_table(tmp_path / "b.csv")["commit"].to_pylist() == [VERSION]
