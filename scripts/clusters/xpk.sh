#!/usr/bin/env bash
# Runs one experiment as a workload of XPK on a GKE cluster with TPUs.
#
#   ./scripts/clusters/xpk.sh NAME v5litepod-16 benchmark --config=configs/own.py \
#       --config.target.path=ORGANISATION/MODEL --config.mesh.preset=tensor --config.mesh.model=16 \
#       --workdir=/results/own
#
# needs a cluster that `xpk cluster create` made (XPK_CLUSTER, XPK_ZONE and XPK_PROJECT name it) and
# sends what is committed of the repository along with a Python image. Pods are gone when the workload is over: mount
# storage for the workdir (`xpk storage attach`). SPECJAX_DRY_RUN=1 prints the command instead.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,10p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
NAME="$1" TYPE="$2" EXPERIMENT="$3"
shift 3
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
IMAGE="${SPECJAX_IMAGE:-python:3.13}"
for name in XPK_CLUSTER XPK_ZONE XPK_PROJECT; do
  [ -n "${!name:-}" ] || { echo "$name is not set; see the head of $0." >&2; exit 2; }
done
arguments="$(printf '%q ' "$@")"
# What is committed, without environments and results.
sources="$(mktemp -d)"
trap 'rm -r "$sources"' EXIT
git -C "$ROOT" archive HEAD | tar -x -C "$sources"
command=(
  xpk workload create "--workload=$NAME" "--tpu-type=$TYPE" "--cluster=$XPK_CLUSTER"
  "--zone=$XPK_ZONE" "--project=$XPK_PROJECT" "--base-docker-image=$IMAGE" "--script-dir=$sources"
  "--command=pip install --quiet -e '.[experiments,tpu]' && python -m experiments.$EXPERIMENT $arguments"
)
if [ -n "${SPECJAX_DRY_RUN:-}" ]; then printf '%q ' "${command[@]}"; echo; else "${command[@]}"; fi
