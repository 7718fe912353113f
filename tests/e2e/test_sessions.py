"""What a notebook or a script on standard input does to its engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ARGUMENTS = {"dtype": "float32", "max_model_len": 2048, "max_num_seqs": 8}

SESSION = """
import gc, json, sys
from pathlib import Path
import pandas as pd, psutil
from vllm_relational import RelationalLLM

def engines():
    return [child.pid for child in psutil.Process().children(recursive=True) if "VLLM" in " ".join(child.cmdline())]

if __name__ == "__main__":
    model, arguments = sys.argv[1], json.loads(sys.argv[2])
    llm = RelationalLLM(model, **arguments)
    answers = llm.query(pd.DataFrame({"text": ["a", "b"]}), "{text}?", choices=["yes", "no"])
    first = engines()
    llm = RelationalLLM(model, **arguments)  # the cell is run again
    gc.collect()
    second = engines()
    print(json.dumps([len(answers), len(first), len(second)]))
"""


def test_a_cell_that_is_run_again_frees_the_engine_before(tiny_model: Path):
    """The script comes on standard input, where no engine process can read it again."""
    command = [sys.executable, "-", str(tiny_model), json.dumps(ARGUMENTS)]
    done = subprocess.run(command, input=SESSION, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers, first, second = json.loads(done.stdout.splitlines()[-1])
    assert answers == 2 and first >= 1 and second == 0
    assert "resource_tracker" not in done.stderr  # as of shared memory that an engine has left
