#!/usr/bin/env bash
# What docs/dipr.md reports, on a machine with one NVIDIA GPU and vLLM:  dipr.sh MODEL TABLES OUT [STEP ...]
# MODEL: folder of a Hugging Face model. TABLES: folder of squad_v11_dev.parquet and airbnb_albany_reviews.parquet.
# OUT: for CSV files, plots and logs; a step that was cut short goes on or starts anew. Steps, in this order by default:
#   tests    the kernels and the backend on this GPU
#   measure  tokens kept and divergence by length and way to attend; leaves OUT/kv.pt, the scores that the next needs
#   kernels  one layer's decode attention against FlashAttention 3, by blocks of 64 and of 16
#   engine   answers of whole engines against vLLM's own, also of preempted requests; milliseconds a token
#   quality  answers over long prompts, dense and by settings of ours
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,9s/^# //p' "$0"; exit 2; }
model=$1 tables=$2 out=$3
shift 3
root=$(cd "$(dirname "$0")/../.." && pwd)
bench=$root/scripts/bench
python=${PYTHON:-python3}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
commit=$("$python" -c 'from vllm_relational.compare.provenance import code_version; print(code_version())')
mkdir -p "$out"

run_tests() {
  "$python" -m pytest -q -p no:cacheprovider "$root/tests/kernels"
  DIPR_MODEL=$model "$python" -m pytest -q -p no:cacheprovider "$root/tests/gpu"
}

run_measure() {
  "$python" "$bench/dipr_measure.py" "$model" --text squad="$tables/squad_v11_dev.parquet:context" \
    --text reviews="$tables/airbnb_albany_reviews.parquet:comments" --out "$out" --dump "$out/kv.pt"
}

run_kernels() {
  local size
  for size in 64 32 16; do
    "$python" "$bench/dipr_kernels.py" --dump "$out/kv.pt" --block-size "$size" --commit "$commit" --parts \
      --tuning chained=0 --csv "$out/dipr.csv"
  done
  "$python" "$bench/dipr_plots.py" "$out/dipr.csv"
}

run_engine() {
  local layers
  for layers in 32 22; do  # with 32, four contexts of 131,072 tokens do not fit beside the weights in 80 GB
    "$python" "$bench/dipr_engine.py" --only speed --layers "$layers" --contexts 4096,32768,131072 --rounds 7 \
      --tokens 128 --memory 0.93 --mode 3 --backends FLASH_ATTN,FLASH_ATTN-fp8,dipr --commit "$commit" \
      --csv "$out/dipr_engine.csv" --kernels "$out/dipr_engine_kernels.csv"
  done
  "$python" "$bench/dipr_plots.py" "$out/dipr_engine.csv"
  "$python" "$bench/dipr_engine.py" --only again --model "$model" --json "$out/again.json"
  "$python" "$bench/dipr_engine.py" --only check --model "$model" --json "$out/check.json"
}

run_quality() {
  "$python" "$bench/dipr_quality.py" "$model" --haystack "$tables/squad_v11_dev.parquet:context" --out "$out/quality" \
    --engine vllm --batch-tokens 2097152 --dipr '{}' --dipr '{"alpha": 0.012}' --dipr '{"alpha": 0.001}' \
    --dipr '{"alpha": 1, "tail": false, "recent": 2560}' --dipr '{"method": "v_skip", "alpha": 0}' \
    --dipr '{"method": "topk_pages", "top_tokens": 2048}' --dipr '{"method": "topk_pages", "top_tokens": 64, "recent": 2560}'
}

for step in "${@:-tests}" ; do
  case $step in
  tests | measure | kernels | engine | quality) ;;
  *) echo "dipr.sh: no step $step: there are tests, measure, kernels, engine, quality" >&2; exit 2 ;;
  esac
done
[ $# -gt 0 ] || set -- tests measure kernels engine quality
for step in "$@"; do
  echo "== $step"
  "run_$step" 2>&1 | tee "$out/$step.log"
done
