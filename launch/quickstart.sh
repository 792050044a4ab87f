#!/usr/bin/env bash
# Installs robustjax, trains a small network on real images to withstand attacks, and evaluates it: one to two minutes.
# Usage: launch/quickstart.sh [WORKDIR]   (default: runs/quickstart; an earlier run there goes on or is evaluated again)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

workdir=${1:-runs/quickstart}
ensure_environment ""
"$python" -m robustjax.train --config=configs/quickstart.py --workdir="$workdir"
"$python" -m robustjax.evaluate --workdir="$workdir"
