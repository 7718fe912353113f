"""Libraries of the extras that several packages use: imported when needed; a missing one is named with its command."""

from __future__ import annotations

from typing import Any

from vllm_relational.records import RelationalError


def import_faiss(purpose: str) -> Any:
    """The library faiss, of the extra ``semantic``.

    purpose: what needs it, as the beginning of a sentence. Raises ``RelationalError`` where it is missing.
    """
    try:
        import faiss
    except ImportError as error:
        raise RelationalError(f"{purpose} needs faiss: pip install 'vllm-relational[semantic]'") from error
    return faiss
