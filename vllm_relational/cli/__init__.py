"""The command line: one module a group of commands. ``main`` is the entry point."""

from vllm_relational.cli.app import main

__all__ = ["main"]
