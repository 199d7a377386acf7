#!/usr/bin/env bash
# An EAGLE-3 head for SmolLM2-135M-Instruct from nothing: chats that the model writes itself, training
# on them, and what the head brings.
#
#   ./scripts/smollm2_head.sh [--chats=8000] [--steps=2400] [--batch=64] [--out=runs/smollm2_head]
#     [--python=PYTHON]
#
# Every step goes on where it was stopped. On a GPU take more: --chats=200000 --batch=512
# --steps=20000.
#
#   --python=PYTHON  runs in this interpreter's environment, as it is
#   SPECJAX_CACHE    a folder that holds the model's file, where there is no network
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=python_env.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"

PYTHON=""
out=runs/smollm2_head chats=8000 steps=2400 batch=64
for argument in "$@"; do
  case "$argument" in
    --chats=*) chats="${argument#*=}" ;;
    --steps=*) steps="${argument#*=}" ;;
    --batch=*) batch="${argument#*=}" ;;
    --out=*) out="${argument#*=}" ;;
    --python=*) PYTHON="${argument#*=}" ;;
    *) fail "unexpected argument '$argument'; see the head of this script." ;;
  esac
done
if [ -z "$PYTHON" ]; then setup experiments,gguf; else cd "$ROOT"; fi

# A small model asks saner questions at a lower temperature, and a draft that is asked for its likely
# continuations learns more from answers that are near them.
"$PYTHON" -m experiments.synthesize --config=configs/synthesize.py \
  --config.target.name=smollm2 --config.num_chats="$chats" --config.batch_size="$batch" \
  --config.question.temperature=0.8 --config.answer.temperature=0.8 --workdir="$out/chats"
"$PYTHON" -m experiments.train --config=configs/train_eagle3.py:smollm2 \
  --config.corpus.chats="$out/chats/chats.jsonl" --config.num_steps="$steps" --workdir="$out/head"
"$PYTHON" -m experiments.benchmark --config=configs/own.py --config.target.name=smollm2 \
  --config.drafter.kind=eagle --config.drafter.path="$out/head/model" \
  --config.batch_sizes="(1,)" --workdir="$out/own"
