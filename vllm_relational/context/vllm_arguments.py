"""What vLLM is told so that an engine keeps contexts in a folder: its ``kv_transfer_config``."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vllm_relational.context.fingerprint import fingerprint_of_folder
from vllm_relational.records import RelationalError

GIB = 1 << 30
SHARED_MEMORY = "/dev/shm"
SHARE_OF_MEMORY, SHARE_OF_SHARED = 0.25, 0.75
TAKEN = ("kv_transfer_config", "kv_offloading_size")
"""Arguments of vLLM that say where blocks go, as ours do."""
_CONNECTORS = {
    True: ("ContextConnector", "vllm_relational.context.vllm_connector"),
    False: ("ContextOffloadingConnector", "vllm_relational.context.vllm_tier"),
}


def context_arguments(
    folder: str | Path,
    on_cpu: bool,
    size_gib: float | None = None,
    memory_gib: float | None = None,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """Arguments of ``vllm.LLM``.

    on_cpu:     whether vLLM runs on a CPU.
    size_gib:   limit of the folder; None: no limit.
    memory_gib: on a GPU, CPU memory that blocks pass through: a context that does not fit into it is not loaded. None:
                a quarter of the machine's, as far as there is shared memory.
    given:      names of the user's own arguments; ``RelationalError`` where one of them says the same thing.
    """
    for name in TAKEN:
        if name in given:
            raise RelationalError(f"contexts and {name} exclude each other: give one")
    root = str(Path(folder).absolute())
    limit = {} if size_gib is None else {"max_bytes": int(size_gib * GIB)}
    name, module = _CONNECTORS[on_cpu]
    config = {
        "kv_connector": name,
        "kv_connector_module_path": module,
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"root": root, **limit} if on_cpu else _tiers(root, limit, memory_gib),
    }
    return {"kv_transfer_config": config}


def _tiers(root: str, limit: dict[str, int], memory_gib: float | None) -> dict[str, Any]:
    tier = {"type": "ContextTier", "module_path": _CONNECTORS[False][1], "root": root, **limit}
    memory = default_memory() if memory_gib is None else int(memory_gib * GIB)
    return {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": memory, "secondary_tiers": [tier]}


def default_memory() -> int:
    """Bytes; vLLM takes them from shared memory, of which a container often has little."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * SHARE_OF_MEMORY
    try:
        shared = os.statvfs(SHARED_MEMORY)
    except OSError:
        return int(memory)
    return int(min(memory, shared.f_bavail * shared.f_frsize * SHARE_OF_SHARED))


def check_model(model: str, folder: str | Path) -> None:
    """Raise ``RelationalError`` where contexts of this model, or in this folder, cannot be kept, before an engine is
    started: vLLM would hide the reason in its engine's process. Models of hub names are looked at there."""
    if Path(model).is_dir():
        fingerprint_of_folder(model, "any")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RelationalError(f"contexts cannot be kept in {folder}: {error.strerror or error}") from error
