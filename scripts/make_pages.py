#!/usr/bin/env python3
"""Make docs/results (from the CSVs of scripts/bench), and from the definitions of the options docs/reference and the
arguments that editors read.

python scripts/make_pages.py            write the pages
python scripts/make_pages.py --check    only say which are out of date; exit status 1 if any is
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pages.arguments import arguments_module
from pages.attention import attention_page
from pages.orders import chart, orders_page
from pages.reference import cli_page, options_page
from pages.results import dedup_page, index_page, planner_page, retrieval_page, scheduler_page, sql_page
from pages.searches import searches_page

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {
    "results/README.md": index_page,
    "results/orders.md": orders_page,
    "results/orders.svg": chart,
    "results/planner.md": planner_page,
    "results/scheduler.md": scheduler_page,
    "results/attention.md": attention_page,
    "results/retrieval.md": retrieval_page,
    "results/dedup.md": dedup_page,
    "results/sql.md": sql_page,
    "results/searches.md": searches_page,
    "reference/options.md": options_page,
    "reference/cli.md": cli_page,
    "../vllm_relational/config/arguments.py": arguments_module,
}


def place(name: str) -> Path:
    """Where a page stands."""
    return (DOCS / name).resolve()


def outdated() -> dict[Path, str]:
    """By path: the text of every page that is not as it should be."""
    made = {place(name): make() for name, make in PAGES.items()}
    return {path: text for path, text in made.items() if not path.exists() or path.read_text("utf-8") != text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    stale = outdated()
    for path, text in stale.items():
        print(path)
        if not args.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    sys.exit(bool(stale) and args.check)


if __name__ == "__main__":
    main()
