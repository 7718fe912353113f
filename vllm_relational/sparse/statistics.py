"""What the kernels count on the device, and where: one vector of int64, over all requests, layers and KV heads.

The kernels add to it, ``vllm_ext/attention/statistics.py`` names and reports it. With the setting ``certificate`` every
head of a request falls into a bin by the share of its attention weight that was only estimated: bin ``i`` is a share
from ``2 ** -(i + 1)`` up to ``2 ** -i``, the last one all smaller ones.
"""

from __future__ import annotations

BODY_TOKENS = 0
"""Tokens between the ends of the window."""
LISTED_TOKENS = 1
"""Of these, tokens that were attended to exactly."""
DENSE_SPLITS = 2
"""Parts of a context, each of a KV head, request and layer, that were attended to densely for want of room."""
FIRST_BIN = 3
NUM_BINS = 16
NUM_COUNTERS = FIRST_BIN + NUM_BINS
