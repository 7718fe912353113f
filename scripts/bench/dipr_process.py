"""Parts of a benchmark in processes of their own: each has the GPU for itself, and none takes the others along."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def in_own_process(script: str, part: str, backend: str, known: Path, timeout_s: float) -> dict[str, Any]:
    """What the part found; what it had found so far where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        command = [sys.executable, script, *sys.argv[1:], "--part", part, "--backend", backend, "--out", str(out)]
        begin = time.perf_counter()
        print(f"{part}, {backend} ...", flush=True)
        status = run_group(command, environment(known), timeout_s)
        print(f"{part}, {backend}: {time.perf_counter() - begin:.0f} s, exit status {status}", flush=True)
        measured = json.loads(out.read_text()) if out.exists() else {}
        return measured if status == 0 else {**measured, "error": f"exit status {status}"}


def run_group(command: list[str], variables: dict[str, str], timeout_s: float) -> int | str:
    """The exit status. A child that takes too long ends together with its engine, which holds the GPU's memory."""
    child = subprocess.Popen(command, env=variables, start_new_session=True)
    try:
        return child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return f"none after {timeout_s:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def environment(known: Path) -> dict[str, str]:
    """known: a folder for the entry point, where the package is on the path but not installed."""
    paths = [str(known), str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    defaults = {**offline, "VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    return {**defaults, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def make_known(folder: Path) -> None:
    """The metadata by which vLLM finds the plugin."""
    info = folder / "vllm_relational-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-relational\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nrelational = vllm_relational.plugin:register\n")


def write_whole(file: Path, found: dict[str, Any]) -> None:
    """Whatever ends this process, the file is the one before or the new one."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(found))
    new.replace(file)


def finish_part(part: Callable[[], dict[str, Any]], out: Path) -> int:
    """In the process of a part: write what it finds and return its exit status. One that fails ends at once, as the
    engine's own process and threads would keep this one waiting."""
    try:
        found = part()
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)
    write_whole(out, found)
    return 0
