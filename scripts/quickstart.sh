#!/usr/bin/env bash
# From an empty folder to a judged generator: build a zoo of small networks, learn from it, generate networks for a task
# that nobody trained on, and compare them with everything simpler. Then, with what is shipped, an adapter of a text
# encoder from label texts. A rerun goes on where the last one stopped.
#   bash scripts/quickstart.sh [--out DIR] [--generator NAME]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=runs/quickstart
generator=d2nwg
while (($#)); do
  case $1 in
    --out | --generator)
      if (($# < 2)); then
        echo "error: $1 needs a value" >&2
        exit 2
      fi
      if [[ $1 == --out ]]; then out=$2; else generator=$2; fi
      shift 2
      ;;
    -h | --help)
      sed -n '2,5s/^# *//p' "${BASH_SOURCE[0]}"
      exit
      ;;
    *)
      echo "error: unknown argument $1" >&2
      echo "remedy: bash scripts/quickstart.sh [--out DIR] [--generator NAME]" >&2
      exit 2
      ;;
  esac
done

config=configs/$generator-digits.yaml
if [[ ! -f $config ]]; then
  echo "error: there is no $config" >&2
  echo "remedy: choose a generator among: $(cd configs && ls ./*-digits.yaml | sed 's|^./||; s/-digits.yaml$//' | xargs)" >&2
  exit 2
fi

source scripts/_venv.sh
use_venv minilm
SECONDS=0 # installation is not part of the time

weightgen zoo build configs/digits.yaml --zoo "$out/zoo"
weightgen train "$config" --zoo "$out/zoo" --out "$out/generator"
python -m zoo.build.examples --zoo "$out/zoo" --split test --out "$out/examples.npz"
weightgen generate --generator "$out/generator" --data "$out/examples.npz" --out "$out/networks" --n 4 --seed 0
weightgen evaluate --generator "$out/generator" --zoo "$out/zoo" --out "$out"
if weightgen generate "What does the customer write about?" --labels "a parcel,a refund,the account" --out "$out/adapter"
then
  weightgen kit --out "$out/kit"
else
  echo "no adapter: pip install 'weightgen[minilm]' brings the encoder" >&2
fi
echo "card: $out/card.json and $out/card.png, ${SECONDS} s"
