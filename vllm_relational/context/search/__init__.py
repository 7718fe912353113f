"""Search in the keys of a stored context: which tokens a query attends to, and attention over those alone.

Everything is about one KV head of one layer: its keys ``[num_keys, head_size]`` (float32, float16, or bfloat16 as
uint16) and the query heads that share it, float32 ``[num_heads, head_size]``. Scores are not scaled. numpy in, numpy
out.
"""

from vllm_relational.context.search.clusters import Clusters
from vllm_relational.context.search.codes import Int4
from vllm_relational.context.search.flat import Flat
from vllm_relational.context.search.graph import Graph
from vllm_relational.context.search.hits import Hits, KeyIndex
from vllm_relational.context.search.indexes import build, load, save
from vllm_relational.context.search.merge import attend, merge, tokens_between
from vllm_relational.context.search.optimizer import Optimizer, SearchCosts, SearchPlan, SearchRules, Situation

__all__ = [
    "Clusters",
    "Flat",
    "Graph",
    "Hits",
    "Int4",
    "KeyIndex",
    "Optimizer",
    "SearchCosts",
    "SearchPlan",
    "SearchRules",
    "Situation",
    "attend",
    "build",
    "load",
    "merge",
    "save",
    "tokens_between",
]
