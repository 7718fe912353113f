"""The tests of the kernels, in a process whose Triton interprets: no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

KERNELS = Path(__file__).parents[1] / "kernels"


def test_kernels_pass_their_tests():
    """On a GPU pytest collects them itself."""
    if torch.cuda.is_available():
        assert "TRITON_INTERPRET" not in os.environ
        return
    pytest = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(KERNELS)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(pytest, env=environment, cwd=KERNELS.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
