"""The KV cache, simulated: no vLLM, no torch."""
