"""Random cases of a test: fewer where ``scripts/test.sh --fast`` runs it."""

from hypothesis import settings


def examples(number: int) -> int:
    """For ``max_examples``: a quarter of them, at least 5, in the profile ``fast``."""
    return max(5, number // 4) if settings.get_current_profile_name() == "fast" else number
