"""Everything that touches vLLM internals."""
