#!/usr/bin/env bash
# Takes a machine with only Python to a finished benchmark of the shipped pair.
#
#   ./scripts/quickstart.sh [--config.FIELD=VALUE …]
#
# Sets up .venv in the repository, then writes runs/quickstart/ (report.html, metrics.jsonl).
# SPECJAX_PYTHON=/path/to/python3 chooses the interpreter (3.12 or newer is fastest).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=python_env.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"

setup experiments
exec "$PYTHON" -m experiments.benchmark \
  --config=configs/quickstart.py --workdir=runs/quickstart "$@"
