"""The tests of the kernels, in a process whose Triton interprets: no GPU is needed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
KERNELS = Path(__file__).parent / "kernels"
PEER = KERNELS / "test_xformers_merge.py"


def _pass_interpreted(*arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=KERNELS.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_kernels_pass_their_tests():
    """On a GPU pytest collects them itself."""
    if torch.cuda.is_available():
        assert "TRITON_INTERPRET" not in os.environ
        return
    _pass_interpreted(str(KERNELS), f"--ignore={PEER}")


def test_kernels_merge_as_xformers_does():
    """On a GPU pytest collects it itself."""
    if importlib.util.find_spec("xformers") is None:
        pytest.skip("needs xformers: pip install xformers")
    if not torch.cuda.is_available():
        _pass_interpreted(str(PEER))
