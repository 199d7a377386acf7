# shellcheck shell=bash
# Sets up .venv in the repository; sourced by the other scripts, which then use "$PYTHON".
#
# Environment:
#   SPECJAX_PYTHON  an interpreter to use instead of the newest one that is found
#   SPECJAX_VENV    a folder for the environment, instead of .venv in the repository
#   SPECJAX_EXTRA   cuda, tpu or cpu, instead of what is found in the machine

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${SPECJAX_VENV:-$ROOT/.venv}"
# A folder with our marker is ours to rebuild; any other .venv belongs to the user.
MARKS="$VENV/.specjax"

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "error: $1"
  shift
  for line in "$@"; do say "  $line"; done
  exit 1
}

# Prints 'RANK VERSION EXECUTABLE' if an interpreter really runs, is a 64-bit CPython 3.11 or
# newer, and can make environments; fails otherwise. It is run to find out, because a version
# manager's shim on the PATH may not run, and Debian's Python may lack ensurepip.
probe_python() {
  # A broken shim may print anything: only a line of this form counts.
  "$1" -I - 2>/dev/null <<'PYTHON' | grep -E '^[0-9] [0-9.]+ /'
import ensurepip, platform, ssl, sys, sysconfig, venv
version = sys.version_info
if version < (3, 11) or platform.python_implementation() != 'CPython' or sys.maxsize < 2**32:
  sys.exit(1)
if sysconfig.get_config_var('Py_GIL_DISABLED') or version.releaselevel != 'final':
  sys.exit(1)
# The project is developed on 3.13 and 3.12; a newer one may lack wheels, and 3.11 gets an older
# JAX with slow bfloat16 on CPUs.
rank = {13: 5, 12: 4, 11: 1}.get(version.minor, 3)
executable = getattr(sys, '_base_executable', None) or sys.executable
print(rank, '%02d.%03d.%03d' % version[:3], executable)
PYTHON
}

# Prints every place where an interpreter may be: the PATH, then version managers' folders.
list_pythons() {
  local name
  for name in python3.13 python3.12 python3.14 python3.11 python3 python; do
    type -aP "$name" 2>/dev/null || true
  done
  local home="${HOME:-/nonexistent}"
  local pattern
  for pattern in \
    "${PYENV_ROOT:-$home/.pyenv}"/versions/*/bin/python3 \
    "${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-$home/.local/share}/uv/python}"/*/bin/python3 \
    "${ASDF_DATA_DIR:-$home/.asdf}"/installs/python/*/bin/python3 \
    "${MISE_DATA_DIR:-${XDG_DATA_HOME:-$home/.local/share}/mise}"/installs/python/*/bin/python3 \
    /opt/homebrew/bin/python3.* /usr/local/bin/python3.*; do
    case "$pattern" in *-config) continue ;; esac
    if [ -x "$pattern" ]; then printf '%s\n' "$pattern"; fi
  done
}

# Prints the interpreter to use.
find_python() {
  local candidate probed best=""
  if [ -n "${SPECJAX_PYTHON:-}" ]; then
    probed="$(probe_python "$SPECJAX_PYTHON")" || fail \
      "SPECJAX_PYTHON=$SPECJAX_PYTHON is not a usable Python." \
      "It must run, be a 64-bit CPython 3.11 or newer (3.12 or newer is faster), and have" \
      "the modules venv and ensurepip (on Debian and Ubuntu: apt install python3-venv)."
    printf '%s\n' "${probed#* * }"
    return
  fi
  while IFS= read -r candidate; do
    probed="$(probe_python "$candidate")" || continue
    if [[ "$probed" > "$best" ]]; then best="$probed"; fi
  done < <(list_pythons | awk '!seen[$0]++')
  [ -n "$best" ] || fail "no usable Python 3.11 or newer was found." \
    "Install Python 3.12 or newer, with venv (Debian and Ubuntu: apt install python3 python3-venv;" \
    "macOS: brew install python@3.13; anywhere: https://www.python.org/downloads), or name one" \
    "with SPECJAX_PYTHON=/path/to/python3."
  printf '%s\n' "${best#* * }"
}

# Prints the interpreter that an environment was made from, 'VERSION PREFIX'; fails if it does
# not run.
identity() { "$1" -I -c 'import sys; print(sys.version.split()[0], sys.base_prefix)' 2>/dev/null; }

# Makes the environment, or keeps the existing one if it runs the wanted interpreter.
make_venv() {
  local python="$1" wanted current
  wanted="$(identity "$python")"
  if [ -e "$VENV" ]; then
    current="$(identity "$VENV/bin/python" \
      && "$VENV/bin/python" -I -c 'import pip' 2>/dev/null)" || current="broken"
    [ "$current" = "$wanted" ] && return
    if [ ! -d "$MARKS" ]; then
      [ "$current" = "broken" ] && fail "$VENV is broken, and was not made by this script." \
        "Move it away, or set SPECJAX_VENV to another folder."
      probe_python "$VENV/bin/python" > /dev/null \
        || fail "$VENV (Python ${current%% *}) is too old." \
        "It was not made by this script: move it away, or set SPECJAX_VENV to another folder."
      say "Using your own $VENV (Python ${current%% *})."
      return
    fi
    say "Rebuilding $VENV: it is ${current%% *}; Python ${wanted%% *} is wanted."
    rm -rf "$VENV"
  fi
  say "Making $VENV with Python ${wanted%% *} ($python)."
  # The marker comes first, so that what an interruption leaves is known to be ours.
  mkdir -p "$MARKS" || fail "cannot write to $(dirname "$VENV")."
  "$python" -m venv "$VENV" || fail "python -m venv failed with $python." \
    "Name another interpreter with SPECJAX_PYTHON=/path/to/python3."
}

# Installs the project with extras, unless these extras of this pyproject.toml are installed.
install_project() {
  local extra hash missing=0
  hash="$("$PYTHON" -I -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read() + sys.argv[2].encode()).hexdigest())' \
    "$ROOT/pyproject.toml" "$ROOT")"
  for extra in ${1//,/ }; do
    [ "$(cat "$MARKS/$extra" 2>/dev/null)" = "$hash" ] || missing=1
  done
  [ "$missing" = 0 ] && return
  say "Installing specjax[$1] into $VENV (some minutes the first time) …"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable "${ROOT}[$1]" \
    || fail "the installation failed; pip's message is above." \
      "Is the network reachable? A proxy is given with HTTPS_PROXY, a mirror of the package" \
      "index with PIP_INDEX_URL. Then run this script again: it goes on where it stopped."
  mkdir -p "$MARKS"
  for extra in ${1//,/ }; do printf '%s\n' "$hash" > "$MARKS/$extra"; done
}

# Prints cuda, tpu or cpu: what JAX is to be installed for; fails for anything else that is named.
accelerator() {
  local device
  case "${SPECJAX_EXTRA:-}" in
    '') ;;
    cuda | tpu | cpu)
      echo "$SPECJAX_EXTRA"
      return
      ;;
    *) fail "SPECJAX_EXTRA must be cuda, tpu or cpu, not $SPECJAX_EXTRA." ;;
  esac
  if nvidia-smi -L > /dev/null 2>&1; then
    echo cuda
    return
  fi
  for device in /sys/bus/pci/devices/*; do
    # Google's accelerators by their class, since its network cards have the same vendor.
    if [ "$(cat "$device/vendor" 2>/dev/null)" = 0x1ae0 ] \
      && [[ "$(cat "$device/class" 2>/dev/null)" == 0x12* ]]; then
      echo tpu
      return
    fi
  done
  echo cpu
}

# setup EXTRAS: makes "$PYTHON" run the project, and its root the working folder.
setup() {
  local python
  python="$(find_python)"
  make_venv "$python"
  PYTHON="$VENV/bin/python"
  install_project "$1"
  cd "$ROOT" || exit 1
}
