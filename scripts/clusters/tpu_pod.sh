#!/usr/bin/env bash
# Sets up and runs experiments on all hosts of a TPU slice, through gcloud.
#
#   gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=v5litepod-16 \
#       --version=v2-alpha-tpuv5-lite
#   ./scripts/clusters/tpu_pod.sh setup NAME ZONE
#   ./scripts/clusters/tpu_pod.sh run NAME ZONE benchmark --config=configs/own.py \
#       --config.target.path=ORGANISATION/MODEL --config.mesh.preset=tensor --config.mesh.model=16 \
#       --workdir=runs/own
#   ./scripts/clusters/tpu_pod.sh fetch NAME ZONE runs/own
#
# The images' Python is too old, and uv brings another one. setup copies what is committed of this repository to every host and installs it; run starts the same
# command on all of them, which find each other; fetch brings the workdir of the first host back. A run
# that is to go on where it stopped needs a workdir that all hosts mount.
# SPECJAX_DRY_RUN=1 prints the commands instead.
set -euo pipefail
usage() { sed -n '2,15p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
[ $# -ge 3 ] || usage
VERB="$1" NAME="$2" ZONE="$3"
shift 3
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

gcloud_tpu() {
  local command=(gcloud compute tpus tpu-vm "$@" "--zone=$ZONE")
  if [ -n "${SPECJAX_DRY_RUN:-}" ]; then printf '%q ' "${command[@]}"; echo; else "${command[@]}"; fi
}
everywhere() { gcloud_tpu ssh "$NAME" --worker=all "--command=$1"; }

case "$VERB" in
  setup)
    archive="$(mktemp -d)/specjax.tar.gz"
    git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD
    gcloud_tpu scp "$archive" "$NAME:specjax.tar.gz" --worker=all
    everywhere 'mkdir -p specjax && tar -xzf specjax.tar.gz -C specjax && cd specjax \
&& python3 -m pip install --user --quiet uv \
&& ~/.local/bin/uv venv --quiet --seed --python 3.12 .venv \
&& .venv/bin/pip install --quiet -e ".[experiments,tpu]"'
    rm -r "$(dirname "$archive")"
    ;;
  run)
    [ $# -ge 2 ] || usage
    EXPERIMENT="$1"
    shift
    arguments="$(printf '%q ' "$@")"
    everywhere "cd specjax && .venv/bin/python -m experiments.$EXPERIMENT $arguments"
    ;;
  fetch)
    [ $# = 1 ] || usage
    mkdir -p "$(dirname "$1")"
    gcloud_tpu scp --recurse "$NAME:specjax/$1" "$1" --worker=0
    ;;
  *) usage ;;
esac
