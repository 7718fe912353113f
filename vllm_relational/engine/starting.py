"""What every vLLM engine in this process needs before and while it starts: environment, defaults, errors."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_relational.records import RelationalError

KV_CACHE_GIB_ON_CPU = 4
CPU_BLOCK_SIZE = 32
CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"  # GiB; vLLM lets it overrule every argument
THREADS_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"
CHOSEN_BY = {
    "enforce_eager": ("compilation_config", "optimization_level"),
    "kv_cache_memory_bytes": ("gpu_memory_utilization",),
}
"""Default of ``cpu_defaults`` -> other arguments of vLLM by which a user chooses the same thing."""
_GUARD_HINT = "put the code that asks under: if __name__ == '__main__':"


def prepare_environment(quiet: bool) -> None:
    """Set what vLLM reads from the environment, where the user has not."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for answers
    if quiet:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
        logging.getLogger("vllm").setLevel(logging.ERROR)
    bind_threads()


def bind_threads() -> None:
    """Let vLLM use every core of a small machine, unless the user says which."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) <= 4:  # vLLM's automatic binding keeps a core back, half of such a machine
        os.environ.setdefault(THREADS_VARIABLE, ",".join(map(str, cores)))


def import_vllm() -> Any:
    """The module, of the version that this package knows; ``RelationalError`` with the fix where it is missing."""
    try:
        vllm = _imported("vllm")
    except ImportError as error:
        raise RelationalError(
            "vLLM is not installed: pip install 'vllm-relational[cuda]' (NVIDIA GPU) or 'vllm-relational[cpu]', "
            f"or use a server with --base-url ({first_line(error)})"
        ) from error
    from vllm_relational.vllm_ext.contract.check import check_contract
    from vllm_relational.vllm_ext.version import check_version

    check_version(vllm.__version__)
    check_contract("process", vllm.__version__)
    return vllm


def prepare_contexts(model: str, folder: Path) -> None:
    """``RelationalError`` where contexts of this model cannot be kept in the folder, which is made."""
    from vllm_relational.context.vllm_arguments import check_model
    from vllm_relational.vllm_ext.contract.check import check_contract

    check_contract("context", import_vllm().__version__)
    check_model(model, folder)


def _imported(name: str) -> Any:
    """The module, imported in a thread of its own.

    What vLLM and the libraries below catch while they are imported, some keep for ever, and with it every frame down to
    the user's cell: an object there could never be freed, nor its engine stopped.
    """
    found: list[Any] = []

    def load() -> None:
        try:
            module = importlib.import_module(name)
            getattr(module, "LLM", None)  # imported when first named, and most of the rest with it
            found.append(module)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=load, name=f"import-{name}", daemon=True)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def refuse_second_run_of_script() -> None:
    """vLLM starts its engine by running the user's script again up to its main guard: without one, no end."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(f"error: {_GUARD_HINT}")


def cpu_defaults(given: Collection[str]) -> dict[str, Any]:
    """Engine arguments that suit a CPU, without those that the user chooses: for an engine here and for a server.

    given: names of his arguments, with underscores. ``VLLM_CPU_KVCACHE_SPACE`` is his choice of a KV cache too.
    """
    # Measured with a 0.5B model on two cores: compiling takes 50 s more to start and is not faster; blocks of 32, the
    # smallest that vLLM's CPU attention takes, are as fast as its default of 128 and share more of a prefix.
    # Without a size vLLM wants 92% of the memory for itself, and does not start where something else runs.
    defaults: dict[str, Any] = {
        "dtype": "bfloat16" if _has_bfloat16_matmul() else "float32",
        "enforce_eager": True,
        "block_size": CPU_BLOCK_SIZE,
    }
    if not os.environ.get(CACHE_VARIABLE):
        defaults["kv_cache_memory_bytes"] = _cpu_cache_gib() * 2**30
    return {name: value for name, value in defaults.items() if not {name, *CHOSEN_BY.get(name, ())} & set(given)}


def is_cpu_build() -> bool:
    """Whether the installed vLLM runs on the CPU, by vLLM's own rule but without importing it."""
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        return True
    for name, built_for in (("vllm", ""), ("vllm-cpu", "cpu")):
        try:
            return "cpu" in importlib.metadata.version(name) + built_for
        except importlib.metadata.PackageNotFoundError:
            continue
    return False


def _has_bfloat16_matmul() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _cpu_cache_gib() -> int:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(KV_CACHE_GIB_ON_CPU, int(memory_gib / 4)))


@contextmanager
def without_unreadable_script() -> Iterator[None]:
    """Start processes inside as if from a prompt, where the main script cannot be read again.

    A process that is spawned runs the main script again, up to its guard. One that came on standard input, or through a
    pipe, is nowhere to be found ('<stdin>'), and no engine process could begin.
    """
    main = sys.modules.get("__main__")
    script = getattr(main, "__file__", None)
    if main is None or script is None or main.__spec__ is not None or os.path.isfile(script):
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = script


def start_message(model: str, error: Exception) -> str:
    """Why vLLM did not start, on one line."""
    reason = first_line(error)
    hint = f"; in a script, {_GUARD_HINT}" if "core initialization" in reason and _lacks_guard() else ""
    return f"vLLM could not start with the model {model}: {reason} (details: --verbose, or quiet=False){hint}"


def _lacks_guard() -> bool:
    """Whether the main script is a file that would ask again when it is run again."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    try:
        return script is not None and "__main__" not in Path(script).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
