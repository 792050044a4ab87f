#!/usr/bin/env bash
# Trains each training option on the digits with three seeds, judges every network by AutoAttack, and prints them beside
# plain adversarial training. An hour on two CPU cores; started again, it goes on where it was stopped.
# With "ablations", the papers' ablations under adaptive attacks instead: a night on two CPU cores.
# Usage: launch/training_options.sh [options|ablations] [RECORDS.json]   (default: results/training_options.json or
# results/ablations.json)
# RUN, if set, is put before each command, such as "nice".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

kind=${1:-options}
records=${2:-results/$([ "$kind" = options ] && echo training_options || echo ablations).json}
ensure_environment ""
for option in $("$python" benchmarks/training_options.py --names="$kind"); do
  for seed in 0 1 2; do
    ${RUN:-} "$python" benchmarks/training_options.py --option="$option" --seed="$seed" --records="$records"
  done
done
"$python" benchmarks/training_options.py --table --records="$records"
