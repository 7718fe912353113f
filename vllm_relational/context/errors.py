"""What goes wrong with stored contexts. Each message names the file or the model, and how to go on."""

from __future__ import annotations

from vllm_relational.records import RelationalError


class ContextError(RelationalError):
    """A context cannot be stored, found or used."""


class DamagedContextError(ContextError):
    """A file of a context does not hold what was written: nothing of it may be used."""


class NewerFormatError(ContextError):
    """A file that a newer version wrote, in a way that this one does not know."""


class UnsupportedModelError(ContextError):
    """A model whose keys and values cannot be used again at another length or place, or that is not understood."""
