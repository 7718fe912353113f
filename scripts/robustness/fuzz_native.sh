#!/bin/sh
# Odd tables, and limits of native code about as large as the tables, through everything native that reads a table,
# under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   fuzz_native.sh [TABLES [SEED [BUILD_FOLDER]]]     100,000 tables from seed 0 by default
#
# Table number n is that of seed SEED + n: a failure is repeated with the seed last printed, and 1 table. A short form
# (the first 80) is a test of csrc, run by tests/native/test_ctest.py.
set -eu
tables=${1:-100000}
seed=${2:-0}
source=$(cd "$(dirname "$0")/../../csrc" && pwd)
build=${3:-$(mktemp -d)}
mkdir -p "$build"
cmake -S "$source" -B "$build" -DVLLM_RELATIONAL_PYTHON=OFF -DVLLM_RELATIONAL_TESTS=ON -DVLLM_RELATIONAL_ASAN=ON \
    -DCMAKE_CXX_FLAGS=-Werror >"$build/configure.log"
cmake --build "$build" --target planner_fuzz >"$build/build.log"
exec "$build/planner_fuzz" "$seed" "$tables"
