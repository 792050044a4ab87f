# shellcheck shell=bash
# Sourced by the scripts beside it: a virtual environment with this checkout installed, made once and reused.
#
#   ensure_environment EXTRA   sets $python to the interpreter of an environment that has what setup.cfg asks for, with
#                              that extra unless it is empty
#
# VENV (default: .venv in the checkout) says where it lies, PYTHON (default: python3) what it is made with.

ensure_environment() {
  local extra=$1 root base stamp
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  base=${PYTHON:-python3}
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed, $base is $("$base" --version 2>&1); set PYTHON=/path/to/python" >&2
    return 2
  }
  VENV=${VENV:-$root/.venv}
  python=$VENV/bin/python
  # Installed for these files and this extra already? Then there is nothing to do, and no network is needed.
  stamp=$VENV/installed-${extra:-base}-$(cat "$root/setup.cfg" "$root/setup.py" "$root/pyproject.toml" | cksum | cut -d' ' -f1)
  [ -e "$stamp" ] && return
  [ -x "$python" ] || "$base" -m venv "$VENV"
  echo "installing into $VENV (a minute or two)"
  "$python" -m pip install --quiet --disable-pip-version-check --editable "$root${extra:+[$extra]}"
  touch "$stamp"
}
