#!/usr/bin/env bash
# Rebuild what the package ships for all-MiniLM-L6-v2 (weightgen/kit): adapters of text tasks whose licence allows it, and
# the generator that learns from these tasks. TASKS is a folder of task files with an index.json that names licences; see
# docs/adapters.md. A rerun goes on where the last one stopped; about an hour on one core.
#   bash scripts/kit.sh TASKS [DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# < 1 || $# > 2)); then
  echo "error: give the folder of the task files" >&2
  echo "remedy: bash scripts/kit.sh TASKS [DIR]" >&2
  exit 2
fi
tasks=$1
out=${2:-runs/kit}

source scripts/_venv.sh
use_venv

sources=$(python scripts/kit.py choose "$tasks")
weightgen zoo build configs/lora-text.yaml --zoo "$out/zoo" --set "data.sources=[$sources]" --set members_per_task=1 \
  --set encoder.dtype=bfloat16 --set 'tasks.validation=[clinc_banking, hwu_qa, sentences_imdb, persona_politics]'
weightgen train configs/prototype-lora.yaml --zoo "$out/zoo" --out "$out/minilm"
python scripts/kit.py pack "$tasks" --zoo "$out/zoo" --generator "$out/minilm"
python scripts/kit.py calibrate "$tasks"
