"""What a finished request says of the tokens that were loaded for it, in vLLM's ``kv_transfer_params``: written by our
connectors in the engine's process, read where the answer arrives, also from a server's reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

KEY = "contexts"


class Loaded(NamedTuple):
    """tokens: of the prompt, loaded from stored contexts. lost: promised, but missing or damaged, and so computed;
    vLLM counts them as cached."""

    tokens: int = 0
    lost: int = 0


def report_of(promised: int, lost: int) -> dict[str, Any] | None:
    """What to say; nothing where nothing was promised."""
    return {KEY: {"loaded": promised - lost, "lost": lost}} if promised else None


def loaded_of(kv_transfer_params: Any) -> Loaded:
    """What was said; none of another's making is believed."""
    said = kv_transfer_params.get(KEY) if isinstance(kv_transfer_params, Mapping) else None
    if not isinstance(said, Mapping):
        return Loaded()
    loaded, lost = said.get("loaded"), said.get("lost")
    if type(loaded) is not int or type(lost) is not int or min(loaded, lost) < 0:
        return Loaded()
    return Loaded(loaded, lost)
