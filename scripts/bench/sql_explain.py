"""Time and memory of deduplication and EXPLAIN over a large table: python scripts/bench/sql_explain.py [--rows N]

The table has five columns: a comment, a product, its description and category, and a rating.
A third of the rows repeat. The question reads all columns. ``--tokenizer`` counts tokens exactly; without it they are
estimated by length.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import duckdb

import vllm_relational.sql
from vllm_relational import RelationalLLM
from vllm_relational.records import EngineInfo

QUERY = """
SELECT LLM_FILTER('Is {comment} fair to {product}, {category}, {description}, at {rating} stars?',
                  comment, product, category, description, rating)
FROM '{path}'
"""


class Planned(RelationalLLM):
    """Plans with a tokenizer of its own and never asks."""

    def expected_engine(self) -> EngineInfo:
        return EngineInfo("none: planning only", max_model_len=4096)


def write_table(path: Path, rows: int) -> None:
    """A seeded Parquet file: the same bytes of data on every machine."""
    place = str(path).replace("'", "''")
    duckdb.execute(
        f"""COPY (SELECT 'The ' || ['strap','lid','zip','print','seam'][1 + i % 5] || ' came loose on day '
                || i || ', otherwise ' || ['fine','poor','great'][1 + i % 3] AS comment,
            'product ' || (hash(i * 7) % 5000) AS product, 'category ' || (hash(i * 7) % 5000 % 40) AS category,
            'A sturdy thing for every day, model ' || (hash(i * 7) % 5000) || ', washable, two pockets' AS description,
            1 + hash(i * 3) % 5 AS rating
            FROM (SELECT x % ({rows} * 2 // 3) AS i FROM range({rows}) t(x))) TO '{place}' (FORMAT parquet)"""
    ).fetchall()


def main() -> None:
    """Print seconds, memory and the plan."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--tokenizer", default=None, help="folder or hub name")
    options.add_argument("--order", default="tree")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        write_table(path, given.rows)
        llm = Planned(tokenizer=given.tokenizer, base_url="http://none", order=given.order)
        start, cpu = time.perf_counter(), time.process_time()
        with vllm_relational.sql.connect(llm=llm) as connection:
            plan = connection.explain(QUERY.replace("{path}", str(path)))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(plan)
    print(f"{given.rows:,} rows, order {given.order}: {seconds:.1f} s ({cpu:.1f} s of CPU), {memory:.2f} GiB")


if __name__ == "__main__":
    main()
