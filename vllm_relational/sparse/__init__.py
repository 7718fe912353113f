"""DIPR sparse attention (arXiv 2504.10326): reference, index codec, Triton kernels. No vLLM; torch on use only."""
