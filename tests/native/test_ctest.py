"""Builds csrc with its C++ tests and runs them."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "csrc"
TOOLS = {"cmake": ["cmake"], "ctest": ["ctest"], "a C++ compiler": ["c++", "g++", "clang++"]}
MISSING = [tool for tool, names in TOOLS.items() if not any(map(shutil.which, names))]


@pytest.mark.skipif(bool(MISSING), reason=f"not found: {', '.join(MISSING)}")
def test_cpp_tests_pass(tmp_path):
    options = ["-DVLLM_RELATIONAL_PYTHON=OFF", "-DVLLM_RELATIONAL_TESTS=ON", "-DCMAKE_CXX_FLAGS=-Werror"]
    run("cmake", "-S", SOURCE, "-B", tmp_path, *options)
    run("cmake", "--build", tmp_path)
    run("ctest", "--test-dir", tmp_path, "--output-on-failure", "--no-tests=error")


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
