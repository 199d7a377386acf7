#!/usr/bin/env bash
# Takes a machine with only Python to a finished benchmark of the shipped pair.
#
#   ./scripts/quickstart.sh [--config.FIELD=VALUE …]
#
# Sets up .venv in the repository, with JAX for the GPU or TPU that is there, then writes
# runs/quickstart/ (report.html, metrics.jsonl).
# SPECJAX_PYTHON=/path/to/python3 chooses the interpreter (3.12 or newer is fastest), SPECJAX_EXTRA=cpu
# (cuda, tpu) what JAX is installed for.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=python_env.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"

kind="$(accelerator)"
if [ "$kind" = cpu ]; then setup experiments; else setup "experiments,$kind"; fi
exec "$PYTHON" -m experiments.benchmark \
  --config=configs/quickstart.py --workdir=runs/quickstart "$@"
