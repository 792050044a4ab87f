#!/usr/bin/env bash
# Installs what the tests need and runs them all.
# Usage: launch/test.sh [PYTEST_ARGUMENTS...]
# `launch/test.sh -m slow` runs those that take minutes each, or show again what a sibling shows; `launch/test.sh -m torch`
# those that need PyTorch, in an environment of their own: its wheels are gigabytes; `launch/test.sh -m notebooks` executes
# the notebooks.
# Tests on real MNIST and CIFAR-10 run where TFDS_DATA_DIR holds them prepared, and are skipped elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

extra=dev
if [[ " $* " == *" -m torch "* ]]; then
  extra=dev,torch,zoo
  VENV=${VENV:-$PWD/.venv-torch}
elif [[ " $* " == *" -m notebooks "* ]]; then
  extra=dev,notebooks
fi
ensure_environment "$extra"
"$python" -m ruff check .
"$python" -m basedpyright --project pyproject.toml --level error --pythonpath "$python"
# Two workers: the tests spend their time compiling, one thread each.
exec "$python" -m pytest -n 2 --dist loadfile -m "not slow and not torch and not notebooks" "$@"
