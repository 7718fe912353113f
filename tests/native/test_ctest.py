"""Builds csrc with its C++ tests and runs them: under sanitizers where the compiler has them."""

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

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not found: {', '.join(MISSING)}")]


def environment():
    """vLLM's CPU platform, used by tests before, makes libraries load first, where sanitizers want to be."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def test_cpp_tests_pass(tmp_path):
    """No bad address, no leak, no undefined behaviour; the fuzz program is one of the tests. The released build is what
    the tests in Python call."""
    sanitizers = "OFF" if why_no_sanitizer(tmp_path) else "ON"
    options = ["-DVLLM_RELATIONAL_PYTHON=OFF", "-DVLLM_RELATIONAL_TESTS=ON", "-DCMAKE_CXX_FLAGS=-Werror"]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", SOURCE, "-B", tmp_path, *generator, *options, f"-DVLLM_RELATIONAL_ASAN={sanitizers}")
    run("cmake", "--build", tmp_path, "--parallel", "2")
    run("ctest", "--test-dir", tmp_path, "--parallel", "2", "--output-on-failure", "--no-tests=error")


def run(*command):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600, env=environment()
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
