#!/usr/bin/env bash
# Everything that the owner of a GPU or TPU can tell us, in one command and one file:
#
#   ./scripts/validate_hardware.sh [--smoke]
#
# Sets up .venv with the extra for the accelerator, then runs there: the tests of
# losslessness, the check over 200 real prompts, and the benchmark with its calibration
# (costs of draft steps, wide passes and the loop; fast dtype and width). Half an hour or
# less on an accelerator; on a CPU it works as well. A step that fails does not stop the
# others. All logs and results end in hardware-PLATFORM-DATE.tar.gz: send that back.
#
#   --smoke         the same steps with tiny settings, in a few minutes
#   SPECJAX_EXTRA   cuda, tpu or cpu, where the accelerator is not recognised
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=python_env.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"

smoke=0
for argument in "$@"; do
  case "$argument" in
    --smoke) smoke=1 ;;
    *) fail "unknown argument $argument; there is only --smoke." ;;
  esac
done

# Prints cuda, tpu or cpu.
detect() {
  local device
  if nvidia-smi -L > /dev/null 2>&1; then
    echo cuda
    return
  fi
  for device in /sys/bus/pci/devices/*; do
    # Google's processing accelerators; its network cards have the same vendor.
    if [ "$(cat "$device/vendor" 2>/dev/null)" = 0x1ae0 ] \
      && [[ "$(cat "$device/class" 2>/dev/null)" == 0x12* ]]; then
      echo tpu
      return
    fi
  done
  echo cpu
}

kind="${SPECJAX_EXTRA:-$(detect)}"
case "$kind" in
  cuda | tpu)
    setup "experiments,test,$kind"
    export JAX_PLATFORMS="$kind,cpu"
    ;;
  cpu)
    setup experiments,test
    export JAX_PLATFORMS=cpu
    ;;
  *) fail "SPECJAX_EXTRA must be cuda, tpu or cpu, not $kind." ;;
esac
say "Validating on $kind."

RESULTS="runs/hardware"
rm -rf "$RESULTS"
mkdir -p "$RESULTS"
failed=0

# step NAME COMMAND …: runs it, keeps its output, and goes on whatever happens.
step() {
  local name="$1" started=$SECONDS status=0
  shift
  say "== $name"
  "$@" > >(tee "$RESULTS/$name.log") 2>&1 || status=$?
  [ "$status" = 0 ] || failed=1
  printf '%s exit=%s seconds=%s\n' "$name" "$status" "$((SECONDS - started))" \
    >> "$RESULTS/summary.txt"
}

# shellcheck disable=SC2317  # called through step
describe_machine() {
  date -u
  uname -srm
  git describe --always --dirty 2>/dev/null || true
  lscpu 2>/dev/null | grep -E '^(Model name|CPU\(s\)|Flags)' || true
  nvidia-smi 2>/dev/null || true
  "$PYTHON" -m pip list --exclude-editable --disable-pip-version-check 2>/dev/null
}

# Fails where JAX does not see the accelerator that is there.
# shellcheck disable=SC2317  # called through step
check_devices() {
  "$PYTHON" - "$kind" <<'PYTHON'
import sys
import jax
import jax.numpy as jnp
wanted = {'cuda': 'gpu', 'tpu': 'tpu', 'cpu': 'cpu'}[sys.argv[1]]
print('jax', jax.__version__, jax.devices())
x = jnp.ones((256, 256), jnp.bfloat16)
print('a product:', (x @ x)[0, 0])
if jax.default_backend() != wanted:
  sys.exit(f'Expected a {wanted}, but JAX runs on {jax.default_backend()}.')
PYTHON
}

if [ "$smoke" = 1 ]; then
  tests=(tests/engine/test_sampling.py -k protocol)
  prompts=(--prompts=2 --batch=2 --prompt_length=8 --new_tokens=4 --k=1 --dtypes=float32)
  benchmark=configs/benchmark_zoo.py:smoke
else
  tests=(tests/verify/test_lossless.py tests/engine/test_engine.py tests/engine/test_sampling.py)
  prompts=(--prompts=200)
  benchmark=configs/benchmark_zoo.py
fi

step machine describe_machine
step devices check_devices
# One process at a time: an accelerator's memory is not shared. Products of float32 are
# those of float32, which accelerators do not do by default.
step lossless_tests env JAX_DEFAULT_MATMUL_PRECISION=highest \
  "$PYTHON" -m pytest -p no:cacheprovider "${tests[@]}"
step lossless_prompts "$PYTHON" scripts/check_lossless.py "${prompts[@]}" \
  --out="$RESULTS/lossless"
step benchmark "$PYTHON" -m experiments.benchmark --config="$benchmark" \
  --workdir="$RESULTS/benchmark"

file="hardware-$kind-$(date -u +%Y%m%d-%H%M%S).tar.gz"
tar -czf "$file" -C runs hardware
say ""
cat "$RESULTS/summary.txt" >&2
say "Everything is in $ROOT/$file: please send it back, also where a step failed (exit not 0)."
exit "$failed"
