"""Time and memory of deduplication and EXPLAIN over a large table: python scripts/bench/sql_explain.py --csv FILE

The table has five columns: a comment, a product, its description and category, and a rating.
A third of the rows repeat. The question reads all columns. ``--tokenizer`` counts tokens exactly; without it they are
estimated by length.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import duckdb
from lines import check_lines

import vllm_relational.sql
from vllm_relational import RelationalLLM
from vllm_relational.compare.orders import append_csv
from vllm_relational.compare.provenance import code_version, machine
from vllm_relational.records import EngineInfo

FIELDS = (
    "time", "commit", "machine", "cores", "load_average", "rows", "distinct_rows", "order", "token_counts",
    "prompt_tokens", "hit_rate", "seconds", "cpu_seconds", "peak_gib",
)  # fmt: skip
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
    options.add_argument("--csv", type=Path, default=None, help="append a row to this file")
    given = options.parse_args()
    check_lines(options, given.csv, FIELDS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        write_table(path, given.rows)
        llm = Planned(tokenizer=given.tokenizer, base_url="http://none", order=given.order)
        start, cpu = time.perf_counter(), time.process_time()
        with vllm_relational.sql.connect(llm=llm) as connection:
            query = QUERY.replace("{path}", str(path))
            (operator,) = connection.forecast(query).forecasts
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": code_version(),
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "rows": given.rows,
        "distinct_rows": operator.to_ask,
        "order": given.order,
        "token_counts": operator.counts,
        "prompt_tokens": operator.tokens.prompt,
        "hit_rate": round(operator.tokens.hit_rate, 4),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_gib": round(memory, 2),
    }
    print(*(f"{name}: {value}" for name, value in line.items()), sep="\n")
    if given.csv is not None:
        append_csv(given.csv, [line])


if __name__ == "__main__":
    main()
