"""scripts/test.sh over a tree whose tools only say how they end."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "test.sh"
PYTEST = """#!/bin/sh
case "$*" in
*"not vllm and not slow"*) echo "fast $*"; exit $OTHERS ;;
*--ignore=tests/e2e*) echo others; exit $OTHERS ;;
*) echo "engines $*"; exit $ENGINES ;;
esac
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "scripts" / "setup.sh").write_text("exit 0\n")
    for tool in ("ruff", "mypy"):
        write_tool(
            tmp_path / ".venv" / "bin" / tool, '#!/bin/sh\nexit "${MYPY:-0}"\n' if tool == "mypy" else "#!/bin/sh\n"
        )
    write_tool(tmp_path / ".venv" / "bin" / "python", PYTEST)
    return tmp_path


def write_tool(path, text):
    path.write_text(text)
    path.chmod(0o755)


def run(tree, *arguments, **ends):
    environment = {**os.environ, "ENGINES": "0", "OTHERS": "0", "TMPDIR": str(tree), **ends}
    command = ["bash", str(tree / "scripts" / "test.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("ends", [{}, {"ENGINES": "1"}, {"OTHERS": "1"}, {"MYPY": "1"}])
def test_it_fails_when_a_part_fails_and_only_then(tree, ends):
    done = run(tree, **ends)
    assert done.returncode == (1 if ends else 0), done.stderr
    assert "engines" in done.stdout and ("others" in done.stdout) == ("MYPY" not in ends)
    assert not list(tree.glob("tmp.*"))


@pytest.mark.parametrize("ends", [{}, {"OTHERS": "1"}, {"MYPY": "1"}])
def test_fast_runs_one_part_without_engines(tree, ends):
    done = run(tree, "--fast", **ends)
    assert done.returncode == (1 if ends else 0), done.stderr
    assert ("fast" in done.stdout) == ("MYPY" not in ends) and "engines" not in done.stdout


def test_arguments_go_to_one_process(tree):
    done = run(tree, "tests/kernels", "-k", "scan")
    assert done.returncode == 0 and "tests/kernels -k scan" in done.stdout and "others" not in done.stdout
