"""Builds csrc with its C++ tests and runs them: once as released, once under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "csrc"
COMPILERS = ["c++", "g++", "clang++"]
TOOLS = {"cmake": ["cmake"], "ctest": ["ctest"], "a C++ compiler": COMPILERS}
MISSING = [tool for tool, names in TOOLS.items() if not any(map(shutil.which, names))]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not found: {', '.join(MISSING)}")


def environment():
    """vLLM's CPU platform, used by tests before, makes libraries load first, where sanitizers want to be."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for both builds: CMake looks at the compiler once."""
    return tmp_path_factory.mktemp("csrc")


def test_cpp_tests_pass(folder):
    build_and_run(folder, sanitizers="OFF")


def test_cpp_tests_pass_under_sanitizers(folder, tmp_path):
    """No bad address, no leak, no undefined behaviour; the fuzz program is one of the tests."""
    if reason := why_no_sanitizer(tmp_path):
        pytest.skip(f"the compiler has no sanitizers: {reason}")
    build_and_run(folder, sanitizers="ON")


def build_and_run(folder, sanitizers):
    options = ["-DVLLM_RELATIONAL_PYTHON=OFF", "-DVLLM_RELATIONAL_TESTS=ON", "-DCMAKE_CXX_FLAGS=-Werror"]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", SOURCE, "-B", folder, *generator, *options, f"-DVLLM_RELATIONAL_ASAN={sanitizers}")
    run("cmake", "--build", folder, "--parallel")
    run("ctest", "--test-dir", folder, "--parallel", "2", "--output-on-failure", "--no-tests=error")


def run(*command):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr


def why_no_sanitizer(folder):
    """What stands in the way of building and running a program with the sanitizers; empty if nothing does."""
    program = folder / "probe"
    source = program.with_suffix(".cc")
    source.write_text("int main() { return 0; }\n")
    compiler = next(filter(None, map(shutil.which, COMPILERS)))
    build = [compiler, "-fsanitize=address,undefined", str(source), "-o", str(program)]
    for command in (build, [str(program)]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        if done.returncode != 0:
            return done.stderr.strip() or f"{command[0]} ended with {done.returncode}"
    return ""
