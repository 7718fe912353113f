"""Prompts -> completions: vLLM in this process, or an OpenAI-compatible server."""
