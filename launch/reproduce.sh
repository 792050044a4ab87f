#!/usr/bin/env bash
# Trains and judges the networks of results/TABLE.md, cell by cell. Started again, it goes on where it was stopped; what
# has a record in results/table is not run again.
# Usage: launch/reproduce.sh --scale=digits|mnist|cifar10|full [--only=CELL,...] [further flags of benchmarks/reproduce.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

ensure_environment ""
exec "$python" benchmarks/reproduce.py "$@"
