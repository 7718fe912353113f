"""Keys in clusters of some 16, of which only those are opened that may hold a key within beta: the coarse index.

Segments of 8,192 neighbouring keys are clustered by themselves, so that building takes time in proportion to the keys.
A cluster keeps its mean and the variance of each channel. The greatest product in it is guessed as that with the mean
plus ``spread`` standard deviations of products; their variance is the mean of two estimates, one that takes the
channels as independent, and one from the covariance that all clusters share. On real keys either alone opens more or
misses more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm_relational import native
from vllm_relational.context.errors import ContextError
from vllm_relational.context.search import loops, naive_clusters
from vllm_relational.context.search.base import NativeIndex

SPREAD = 3.5
"""Standard deviations above the mean: recall .97 and more at alpha 1e-3 (scripts/bench/context_search.csv)."""
CLUSTER_SIZE, SEGMENT, ROUNDS = 16, 8192, 8


class Clusters(NativeIndex):
    """A coarse index. All query heads look at every cluster that one of them opens; ask for one to open its own alone.

    settings["spread"]: more finds more and opens more.
    """

    kind = "clusters"

    @classmethod
    def build(cls, keys: np.ndarray, *, cluster_size: int = CLUSTER_SIZE, spread: float = SPREAD) -> Clusters:
        """By ``ROUNDS`` rounds of k-means. Keys that hold what is not finite are in no cluster: each search looks at
        them."""
        keys = loops.stored_rows(keys, "keys")
        if not 1 <= cluster_size <= SEGMENT or not spread >= 0:
            raise ContextError(f"clusters of {cluster_size} keys with spread {spread}: there are none")
        how = {"cluster_size": cluster_size, "segment": SEGMENT, "rounds": ROUNDS}
        if native.context_search() is None:
            parts = naive_clusters.build(keys, **how)
        else:
            parts = loops.built("build_clusters", keys=keys, **how)
        return cls(keys, dict(zip(naive_clusters.ARRAYS, parts, strict=True)), {"spread": float(spread)})

    @property
    def num_clusters(self) -> int:
        """Whose means each search looks at."""
        return len(self.arrays["starts"]) - 1

    def _made(self) -> Any:
        return loops.made("Clusters", naive_clusters.Parts, keys=self.keys, **self.arrays)

    def _how(self) -> dict[str, Any]:
        return {"spread": self.settings["spread"]}

    def bounds(self, queries: np.ndarray) -> np.ndarray:
        """The guess of the greatest product in each cluster: float32 ``[num_heads, num_clusters]``."""
        queries = loops.query_heads(queries, self.head_size)
        found: np.ndarray = loops.asked_of(self.loops, "bounds", queries=queries, **self._how())
        return found
