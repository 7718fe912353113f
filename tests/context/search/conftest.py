"""Every test that asks for ``level`` runs with all instructions of this processor, and with the references in numpy."""

import pytest

from vllm_relational import native
from vllm_relational.context.search import loops

LEVELS = [*loops.simd_levels(), *(["numpy"] if native.AVAILABLE else [])]


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(native, "context_search", lambda: None)
    else:
        monkeypatch.setenv("VLLM_RELATIONAL_SIMD", request.param)
    return request.param
