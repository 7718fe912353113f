"""Everything of vLLM that this package touches: classes, methods with their parameters, attributes, and why.

Moving to the next vLLM: install it, run ``tests/vllm_ext/test_contract.py``, and go through what it names: a target
says why we touch it and which of our modules do. Then set ``version.SUPPORTED``. What parameters do not tell, what a
method does, the tests of ``tests/vllm_ext`` and ``tests/e2e`` do.

The same list is read when an engine starts (``check.py``). It is in one place so that nothing is touched unseen: a test
looks for imports, overridden methods and private names that are not here.
"""

from __future__ import annotations

from vllm_relational.vllm_ext.contract.attention import ATTENTION
from vllm_relational.vllm_ext.contract.config import CONFIG
from vllm_relational.vllm_ext.contract.context import CONTEXT
from vllm_relational.vllm_ext.contract.process import PROCESS
from vllm_relational.vllm_ext.contract.scheduler import SCHEDULER
from vllm_relational.vllm_ext.contract.target import Target

CONTRACT: tuple[Target, ...] = (*SCHEDULER, *ATTENTION, *PROCESS, *CONTEXT, *CONFIG)


def replaced_by(module: str) -> dict[str, tuple[str, ...]]:
    """Class of vLLM -> the methods that this module of ours replaces on its instances."""
    return {target.name: target.replaces for target in CONTRACT if target.replaces and module in target.used_by}
