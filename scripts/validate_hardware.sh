#!/usr/bin/env bash
# Measures this project on a GPU or TPU, the most important first, in the minutes given:
#
#   ./scripts/validate_hardware.sh [--minutes=30] [--steps=1-3] [--python=PYTHON] [--out=DIR]
#     [--smoke]
#
# 1 devices, versions, bandwidth; 2 acceptance, its kernel against its definition; 3 plain decoding
# of a Llama-3.1-8B with random weights, and where its time goes; 4 speculation on it beside its
# forecast; 5 losslessness of the shipped pair, its benchmark and the tests of losslessness. Each
# step has its share of the minutes, and what one leaves over goes to the next; a step that fails
# does not stop the others. All results are on disk as soon as they are known, in a few small files
# in runs/hardware (or DIR), to which another call adds: end it whenever you must, or split it in
# two (--steps=1-3, then --steps=4-). At the end they are packed: send back
# hardware-PLATFORM-DATE.tar.gz.
#
#   --minutes=N      for all steps together
#   --python=PYTHON  runs in this interpreter's environment, as it is: makes none, installs nothing,
#                    needs no network; what needs a missing package is skipped and reported
#   --smoke          a rehearsal on any machine: tiny sizes, numbers that mean nothing
#   SPECJAX_EXTRA    cuda, tpu or cpu, if the accelerator is not recognised
#
# Others (--cache, --command_buffers, --latency_hiding, --autotuning, --attention, --accept) go to
# `python -m experiments.validate`, whose --help explains them.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=python_env.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"

PYTHON=""
out="$ROOT/runs/hardware"
forwarded=()
for argument in "$@"; do
  case "$argument" in
    --python=*) PYTHON="${argument#--python=}" ;;
    --out=*) out="${argument#--out=}" ;;
    --*) forwarded+=("$argument") ;;
    *) fail "unexpected argument '$argument'; arguments have the form --NAME=VALUE." ;;
  esac
done

kind="$(accelerator)"
case "$kind" in
  cuda | tpu) extras="experiments,test,$kind" platforms="$kind,cpu" ;;
  cpu) extras=experiments,test platforms=cpu ;;
esac
# The working folder will be the repository, so paths of the caller's are made absolute.
absolute() { case "$1" in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$PWD/$1" ;; esac; }
out="$(absolute "$out")"
if [ -z "$PYTHON" ]; then
  setup "$extras"
else
  command -v "$PYTHON" > /dev/null || fail "--python=$PYTHON does not exist."
  PYTHON="$(absolute "$(command -v "$PYTHON")")"
  "$PYTHON" -c 'import sys, jax, flax; sys.exit(sys.version_info < (3, 11))' || fail \
    "--python=$PYTHON must be Python 3.11 or newer with JAX and Flax; see above." \
    "Without --python, an environment with all that is needed is made."
  cd "$ROOT"
fi
say "Validating on $kind."

status=0
JAX_PLATFORMS="${JAX_PLATFORMS:-$platforms}" "$PYTHON" -m experiments.validate \
  --out="$out" ${forwarded[@]+"${forwarded[@]}"} || status=$?
[ -e "$out/rows.jsonl" ] || exit "$status"
if [ "$out" = "$ROOT/runs/hardware" ]; then
  file="hardware-$kind-$(date -u +%Y%m%d-%H%M%S).tar.gz"
  tar -czf "$file" -C "$(dirname "$out")" "$(basename "$out")"
  say "Everything is in $ROOT/$file: please send it back, even if a step failed."
fi
exit "$status"
