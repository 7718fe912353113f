"""The path that the entry point ``vllm.stat_logger_plugins`` names."""

from vllm_relational.vllm_ext.scheduler.metrics import RelationalStatLogger

__all__ = ["RelationalStatLogger"]
