#!/usr/bin/env bash
# Everything that a commit must pass: style, types, tests. Arguments go to pytest:
#   bash scripts/test.sh                     all
#   bash scripts/test.sh tests/zoo -k lora   all checks, some tests
# WEIGHTGEN_TEST_WORKERS sets the number of test processes (2).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_venv.sh
use_venv dev

# One thread a process: the networks are small, and the processes share the cores.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

failed=()
check() {
  local name=$1
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}

check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "basedpyright" basedpyright
# A module's tests stay in one process, so that what it trains for them is trained once.
check "pytest" pytest -n "${WEIGHTGEN_TEST_WORKERS:-2}" --dist loadscope "$@"

if ((${#failed[@]})); then
  printf 'FAILED: %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "all checks passed in ${SECONDS} s"
