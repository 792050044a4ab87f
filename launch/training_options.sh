#!/usr/bin/env bash
# Trains each training option on the digits with three seeds, judges every network by AutoAttack, and prints them beside
# plain adversarial training. An hour on two CPU cores; started again, it goes on where it was stopped.
# Usage: launch/training_options.sh [RECORDS.json]   (default: results/training_options.json)
# RUN, if set, is put before each command, such as "nice".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

records=${1:-results/training_options.json}
ensure_environment ""
for option in at awp cutmix rs_fgsm gradalign nuat fgsm_pgi n_fgsm at_400 extra friendly natural_share ema cutmix_ema adamw; do
  for seed in 0 1 2; do
    ${RUN:-} "$python" benchmarks/training_options.py --option="$option" --seed="$seed" --records="$records"
  done
done
"$python" benchmarks/training_options.py --table --records="$records"
