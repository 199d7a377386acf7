#!/usr/bin/env bash
# Sets up .venv in the repository and runs the checks: ruff, then tests and doctests.
#
#   ./scripts/test.sh [pytest arguments …]     the short run: every kind of check
#   ./scripts/test.sh --everything [pytest arguments …]
#                                              all combinations too, as before a release
#
# What the short run leaves out, and why, is in tests/support/short_run.py. Tests that are named
# are run whole. SPECJAX_TEST_WORKERS sets how many processes run tests (2).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=python_env.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"

everything=
arguments=()
for argument in "$@"; do
  if [ "$argument" = --everything ]; then everything=1; else arguments+=("$argument"); fi
done

setup experiments,test

# The TPU's compiler, which needs no TPU, for the tests that compile ahead. It lies beside the
# environment: inside, every other run of JAX would look for a TPU and complain.
TPU_COMPILER="$MARKS/tpu-aot"
if [ ! -d "$TPU_COMPILER/libtpu" ]; then
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps \
    --target "$TPU_COMPILER" libtpu 2>/dev/null \
    || say "NOT TESTED: libtpu does not install here, so nothing is compiled for TPUs."
fi
export PYTHONPATH="$TPU_COMPILER${PYTHONPATH:+:$PYTHONPATH}"

# A browser, in which the tests open reports: one that is there, Debian's where we may install
# it, or Playwright's own. Without any the tests of the report say so at the end.
has_browser() { "$PYTHON" -c 'import sys; from tests.support import browser; sys.exit(not browser.find())'; }
if ! has_browser; then
  say "Looking for a browser …"
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    (apt-get update && apt-get install -y --no-install-recommends chromium) > /dev/null 2>&1 || true
  fi
  has_browser || timeout 300 "$PYTHON" -m playwright install chromium > /dev/null 2>&1 || true
  has_browser || say "NOT TESTED: no browser installs here, so no report is opened in one."
fi

# The tests are about results, which are the CPU's; validate_hardware.sh is for accelerators.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
"$PYTHON" -m ruff check .
if [ -n "$everything" ]; then
  say "Everything: 22 minutes on two cores of an AMD EPYC, 16 without it."
  export SPECJAX_TEST_EVERYTHING=1
  # The notebooks and README's example in an environment like Colab's, on the oldest JAX.
  COLAB="$MARKS/colab"
  wanted="$(cat pyproject.toml tests/colab.txt | cksum)"
  if [ "$(cat "$COLAB/.made_of" 2> /dev/null)" != "$wanted" ]; then
    say "Making an environment with Colab's pins …"
    "$PYTHON" -m venv --clear "$COLAB"
    "$COLAB/bin/python" -m pip install --quiet --disable-pip-version-check \
      --constraint tests/colab.txt --editable '.[experiments,notebooks,gguf]' \
      nbclient pytest safetensors sentencepiece
    printf '%s\n' "$wanted" > "$COLAB/.made_of"
  fi
  run="$(mktemp -d)"
  "$COLAB/bin/python" -m experiments.generate --config=configs/zoo.py:smoke --workdir="$run"
  rm -r "$run"
  "$COLAB/bin/python" -m pytest -q -rs tests/test_api.py tests/experiments/test_notebooks.py \
    tests/sharding/test_processes.py -k 'not two_ and not death and not script and not training_goes'
fi
# A module's tests share what it compiles, so that they go to one worker. Modules begin in the order
# of tests/support/short_run.py. -rs: what was skipped is said at the end, with its reason.
exec "$PYTHON" -m pytest -rs --numprocesses="${SPECJAX_TEST_WORKERS:-2}" --dist=loadfile \
  --no-loadscope-reorder ${arguments[@]+"${arguments[@]}"}
