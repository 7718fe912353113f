"""``python -m vllm_relational.cli``."""

from vllm_relational.cli import main

main()
