"""Tests against vLLM's own objects; skipped where vLLM is not installed."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]
