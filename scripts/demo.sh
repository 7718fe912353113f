#!/usr/bin/env bash
# One question over the example table with a real 0.5B model, in the original and in the planned order.
#   demo.sh [SECONDS]     how long the asking may take; a slow machine then asks fewer of the 300 rows (default 200)
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-200}
bash scripts/setup.sh
model=$(.venv/bin/python scripts/get_demo_model.py)
mkdir -p demo
echo "demo: vLLM starts now (a minute or more), then asks as many rows as fit into $seconds s, in two orders" >&2
.venv/bin/vllm-relational bench examples/airbnb_reviews.parquet --model "$model" \
  --prompt 'Who would enjoy this home most? Guest wrote: {comments} Home: {name} {property_type} {description} {neighborhood_overview}' \
  --choices 'family,couple,student,business traveller' \
  --orders original,tree --budget "$seconds" \
  --output demo/answers.parquet --report demo/report.html --csv demo/bench.csv --overwrite
echo
.venv/bin/python scripts/demo_chart.py demo/bench.csv
.venv/bin/python - <<'PYTHON'
import pandas as pd

answers = pd.read_parquet("demo/answers.parquet")
answers["comments"] = answers["comments"].str.replace("\n", " ").str.slice(0, 90)
print("\nAnswers, all rows:", ", ".join(f"{count} {label}" for label, count in answers["answer"].value_counts().items()))
print("\nAnswers of the first rows, in the order of the table:")
print(answers[["comments", "answer"]].head(10).to_string(justify="left"))
print("\nAll answers: demo/answers.parquet; the report: demo/report.html")
PYTHON
