"""A statement about a row, asked as a choice of two labels: ``df.llm.filter`` and ``LLM_FILTER`` ask alike."""

from __future__ import annotations

YES, NO = "yes", "no"
WORDING = "Is the following true? "
"""What is sent before the statement."""
