"""Completions -> values in input order; checkpoint, progress and report."""
