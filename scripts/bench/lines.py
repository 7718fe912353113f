"""The file to which a benchmark appends lines of measurements."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vllm_relational.cli.output import check_csv
from vllm_relational.records import RelationalError


def check_lines(parser: argparse.ArgumentParser, file: Path | None, fields: Sequence[str]) -> None:
    """End with the parser's error, before anything is measured, where lines of these fields cannot be appended."""
    try:
        check_csv(file, fields)
    except RelationalError as error:
        parser.error(str(error))
