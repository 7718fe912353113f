#!/usr/bin/env bash
# Sets up .venv and runs every check: ruff, mypy, the tests.  test.sh [--fast | PYTEST ARGUMENT ...]
#   --fast   in three minutes on two cores: fewer random cases, and no test that starts vLLM, interprets GPU kernels or
#            builds C++
# Without arguments the tests run in two processes: those of tests/e2e, which mostly wait for engines, and the others.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # each process of the tests would compile them and the package again
bash scripts/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
if [ "$*" = --fast ]; then
  .venv/bin/mypy
  exec .venv/bin/python -m pytest -q --durations=5 -n 2 --dist worksteal --hypothesis-profile=fast \
    -m "not vllm and not slow" --ignore=tests/e2e
elif [ $# -gt 0 ]; then
  .venv/bin/mypy
  exec .venv/bin/python -m pytest -q --durations=5 "$@"
fi

others=$(mktemp)
set -m # a process in the background of a shell without jobs ignores Ctrl-C, and tests of Ctrl-C inherit that
{ .venv/bin/mypy && .venv/bin/python -m pytest -q --durations=5 --ignore=tests/e2e; } >"$others" 2>&1 &
trap 'kill -- -$! 2>/dev/null || true; rm -f "$others"' EXIT
status=0
.venv/bin/python -m pytest -q --durations=5 tests/e2e || status=$?
wait $! || status=$?
cat "$others"
exit $status
