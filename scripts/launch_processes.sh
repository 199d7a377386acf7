#!/usr/bin/env bash
# Runs one experiment as several processes on this machine, as several machines would.
#
#   ./scripts/launch_processes.sh 2 4 generate --config=configs/zoo.py \
#       --config.mesh.preset=sequence --config.mesh.model=2 --config.mesh.sequence=4
#
# starts 2 processes with 4 CPU devices each; the first one writes and prints, the others log to
# a file that is named if they fail. On real machines run the same command on each of them with
# --coordinator_address=HOST:PORT --num_processes=N --process_id=0 … N - 1; under Slurm and on a TPU
# slice processes need none of these flags (scripts/clusters). When one process ends with an error,
# the others are ended too.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,11p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
PROCESSES="$1" DEVICES="$2" NAME="$3"
shift 3
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${SPECJAX_VENV:-.venv}/bin/python"
[ -x "$PYTHON" ] || PYTHON=python3
PORT="${SPECJAX_PORT:-$("$PYTHON" -c '
import socket
with socket.socket() as s:
  s.bind(("localhost", 0))
  print(s.getsockname()[1])')}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
LOGS="$(mktemp -d)"
pids=()
for ((i = PROCESSES - 1; i >= 0; i--)); do
  command=("$PYTHON" -m "experiments.$NAME" "$@" "--coordinator_address=localhost:$PORT"
    "--num_processes=$PROCESSES" "--process_id=$i")
  if [ "$i" = 0 ]; then "${command[@]}" & else "${command[@]}" > "$LOGS/$i.log" 2>&1 & fi
  pids+=($!)
done
# Polls, because an old bash cannot wait for whichever process ends first.
code=0
while [ "${#pids[@]}" -gt 0 ]; do
  running=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2> /dev/null; then running+=("$pid"); continue; fi
    status=0
    wait "$pid" || status=$?
    if [ "$status" != 0 ] && [ "$code" = 0 ]; then
      code=$status
      echo "A process ended with code $code; ending the others. Their logs: $LOGS" >&2
      kill "${pids[@]}" 2> /dev/null || true
    fi
  done
  pids=(${running[@]+"${running[@]}"})
  [ "${#pids[@]}" = 0 ] || sleep 0.2
done
[ "$code" != 0 ] || rm -r "$LOGS"
exit "$code"
