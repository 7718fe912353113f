#!/usr/bin/env bash
# Sets up .venv and runs every check: ruff, mypy, the tests.  test.sh [PYTEST ARGUMENT ...]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -q --durations=5 "$@"
