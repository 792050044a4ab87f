#!/usr/bin/env bash
# Builds the documentation into docs/_build/html; a warning is an error.
# Usage: launch/docs.sh [SPHINX_ARGUMENTS...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

ensure_environment docs
exec "$python" -m sphinx -W --keep-going -q -b html docs docs/_build/html "$@"
