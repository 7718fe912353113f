"""Kernels run where there is a GPU, and under Triton's interpreter elsewhere: slowly, so cases are small.

Triton decides for a whole process, at its first import, and other tests need it as it is: so without a GPU these files
are collected with TRITON_INTERPRET=1 only, and ``tests/sparse/test_interpreted.py`` runs them in such a process.
"""

from __future__ import annotations

import os

import torch

collect_ignore_glob = [] if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
