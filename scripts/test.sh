#!/usr/bin/env bash
# Sets up .venv in the repository and runs every check: ruff, then all tests and doctests.
#
#   ./scripts/test.sh [pytest arguments …]
#
# SPECJAX_TEST_WORKERS sets how many processes run tests (2).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=python_env.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"

setup experiments,test
# The tests are about results, which are the CPU's; validate_hardware.sh is for accelerators.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest --numprocesses="${SPECJAX_TEST_WORKERS:-2}" "$@"
