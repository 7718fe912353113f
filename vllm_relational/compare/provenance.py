"""Which code made a measurement, on which machine: for the lines of benchmarks. Neither ever costs a line."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

SECONDS = 10.0  # what git or nvidia-smi may take
TRACKED = ("setup.py", "csrc/CMakeLists.txt", "vllm_relational/compare/provenance.py")
"""Files at these places under the top of a repository tell this package's own from one that holds a copy of it."""


def code_version() -> str:
    """The commit of this package's own repository, shortened, where it runs from there; else the installed version.

    A repository that merely holds the package, as a virtual environment in someone's project does, does not count. The
    same where git is missing, refuses (a folder of another owner) or hangs. ``unknown`` without an installation.
    """
    return _commit(Path(__file__).resolve().parents[2]) or _installed_version()


def machine() -> str:
    """The GPUs where there are any, else the processors: ``2 x NVIDIA H200``."""
    gpus = (_run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines()
    return f"{len(gpus)} x {gpus[0].strip()}" if gpus else f"{os.cpu_count()} x {_processor()}"


def _commit(source: Path) -> str | None:
    """The commit of the repository whose top is ``source``; None where there is none, or it is not this package's."""
    found = (_git(source, "rev-parse", "--show-toplevel", "--short", "HEAD") or "").splitlines()
    if len(found) != 2 or Path(found[0]).resolve() != source:
        return None
    return found[1] if _git(source, "ls-files", "--error-unmatch", *TRACKED) is not None else None


def _installed_version() -> str:
    try:
        return importlib.metadata.version("vllm-relational")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _git(folder: Path, *arguments: str) -> str | None:
    # A hook of another repository names that one in GIT_DIR and its like.
    others = [name for name in os.environ if name.startswith("GIT_") and not name.startswith("GIT_CONFIG")]
    environment = {name: value for name, value in os.environ.items() if name not in others}
    return _run("git", "-C", str(folder), *arguments, environment=environment)


def _run(*command: str, environment: dict[str, str] | None = None) -> str | None:
    """What a command printed; None where it is missing, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return os.fsdecode(done.stdout) if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
