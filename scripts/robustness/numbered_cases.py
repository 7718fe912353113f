"""The command line of runs over numbered cases: how many, from which on, and what to print."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable


def options(description: str, count: int | None = None) -> argparse.ArgumentParser:
    """``[count] [--start N] [--show]``; ``count`` is asked for where there is none."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("count", type=int, nargs=None if count is None else "?", default=count, help="cases")
    found.add_argument("--start", type=int, default=0, help="number of the first case")
    found.add_argument("--show", action="store_true", help="print every case that is not as it should be")
    return found


def numbers(given: argparse.Namespace) -> range:
    """The cases that a command line names."""
    return range(given.start, given.start + given.count)


def main(description: str, name: str, run: Callable[[Iterable[int], bool], list[str]]) -> int:
    """Run the cases of the command line; 1 where anything was wrong. name: what they are; run: see there."""
    given = options(description).parse_args()
    wrong = run(numbers(given), given.show)
    print(f"{given.count} {name}: {len(wrong)} wrong")
    return 1 if wrong else 0
