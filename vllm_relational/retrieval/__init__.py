"""Questions -> passages of a text column, as fields of the table (arXiv 2403.05821, retrieval-augmented generation)."""

from vllm_relational.retrieval.fields import retrieve_fields
from vllm_relational.retrieval.index import RetrievedTexts, TextIndex, build_index
from vllm_relational.retrieval.pairs import nearest_pairs
from vllm_relational.retrieval.sidecar import Sidecar, read_sidecar

__all__ = ["RetrievedTexts", "Sidecar", "TextIndex", "build_index", "nearest_pairs", "read_sidecar", "retrieve_fields"]
