"""Keys in clusters of some 16, of which only those are opened that may hold a key within beta: the coarse index.

Segments of 8,192 neighbouring keys are clustered by themselves, so that building takes time in proportion to the keys.
A cluster keeps its mean and the variance of each channel. A query's scores with its keys have the mean's score as
mean; their variance is the mean of two estimates, one that takes the channels as independent, and one from the
covariance that all clusters share.

A head opens clusters by how many standard deviations above its mean one would have to reach what is looked for: all
that need up to ``SURE``, and then, up to ``MOST``, as many as make a ``SHARE`` of the keys. A head with many keys
within beta has most of them in clusters that need few; one with a few finds them in the tails of clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm_relational import native
from vllm_relational.context.errors import ContextError
from vllm_relational.context.search import loops, naive_clusters
from vllm_relational.context.search.base import NativeIndex

SURE, MOST, SHARE = 2.0, 3.5, 0.15
"""Recall .98 at alpha 1e-3, where a head opens a quarter of the keys (scripts/bench/context_search.csv)."""
CLUSTER_SIZE, SEGMENT, ROUNDS = 16, 8192, 8


class Clusters(NativeIndex):
    """A coarse index. All query heads look at every cluster that one of them opens; ask for one to open its own alone.

    settings: "sure", "most" and "share", as above; more finds more and opens more.
    """

    kind = "clusters"

    @classmethod
    def build(
        cls,
        keys: np.ndarray,
        *,
        cluster_size: int = CLUSTER_SIZE,
        sure: float = SURE,
        most: float = MOST,
        share: float = SHARE,
    ) -> Clusters:
        """By ``ROUNDS`` rounds of k-means. Keys that hold what is not finite are in no cluster: each search looks at
        them."""
        keys = loops.stored_rows(keys, "keys")
        if not 1 <= cluster_size <= SEGMENT or not 0 <= sure <= most or not 0 <= share <= 1:
            raise ContextError(
                f"clusters of {cluster_size} keys, sure {sure}, most {most}, share {share}: there are none"
            )
        how = {"cluster_size": cluster_size, "segment": SEGMENT, "rounds": ROUNDS}
        if native.context_search() is None:
            parts = naive_clusters.build(keys, **how)
        else:
            parts = loops.built("build_clusters", keys=keys, **how)
        return cls(
            keys, dict(zip(naive_clusters.ARRAYS, parts, strict=True)), {"sure": sure, "most": most, "share": share}
        )

    @property
    def num_clusters(self) -> int:
        """Whose means each search looks at."""
        return len(self.arrays["starts"]) - 1

    def _made(self) -> Any:
        return loops.made("Clusters", naive_clusters.Parts, keys=self.keys, **self.arrays)

    def _how(self) -> dict[str, Any]:
        return {name: float(self.settings[name]) for name in ("sure", "most", "share")}

    def products(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """With the mean of each cluster, and their standard deviation: two of float32 ``[num_heads, num_clusters]``."""
        means, deviations = loops.asked_of(self.loops, "products", queries=loops.query_heads(queries, self.head_size))
        return means, deviations
