#!/usr/bin/env bash
# The main job on the example table with a real 0.5B model: the same question in original and in planned order.
#   demo.sh [SECONDS]     how long the asking may take; a slow machine then asks fewer of the 300 rows (default 200)
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-200}
bash scripts/setup.sh demo report
model=$(.venv/bin/python scripts/get_demo_model.py)
mkdir -p demo
.venv/bin/vllm-relational bench examples/airbnb_reviews.parquet --model "$model" \
  --prompt 'What does the guest praise most? Guest wrote: {comments} Home: {name} {property_type} {description} {neighborhood_overview}' \
  --choices location,cleanliness,host,comfort,value \
  --orders original,tree --budget "$seconds" \
  --output demo/answers.parquet --report demo/report.html
.venv/bin/python - <<'PYTHON'
import pandas as pd

answers = pd.read_parquet("demo/answers.parquet")
answers["comments"] = answers["comments"].str.replace("\n", " ").str.slice(0, 90)
print("\nAnswers of the first rows, in input order:")
print(answers[["comments", "answer"]].head(10).to_string(justify="left"))
print("\nAll answers: demo/answers.parquet; the report: demo/report.html")
PYTHON
