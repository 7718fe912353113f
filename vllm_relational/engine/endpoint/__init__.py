"""An OpenAI-compatible endpoint as an engine, one module a concern: questions, transport, replies, verdicts."""

from vllm_relational.engine.endpoint.engine import EndpointEngine

__all__ = ["EndpointEngine"]
