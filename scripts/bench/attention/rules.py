"""Further rules, for comparison with those of ``vllm_relational.sparse.naive``."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class WindowOnly:
    """No token beyond the window."""

    def keep(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.zeros_like(scores, dtype=torch.bool)


@dataclass(frozen=True)
class TopK:
    """The ``k`` greatest scores of a head."""

    k: int

    def keep(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        best = scores.topk(min(self.k, scores.shape[-1]), dim=-1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)


@dataclass(frozen=True)
class TopP:
    """The greatest scores of a head that together have attention mass ``p``, at least one."""

    p: float

    def keep(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        weights, order = torch.softmax(scores * scale, -1).sort(-1, descending=True)
        needed = weights.cumsum(-1) - weights < self.p
        needed[..., 0] = True
        return torch.zeros_like(needed).scatter_(-1, order, needed)
