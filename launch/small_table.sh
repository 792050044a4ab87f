#!/usr/bin/env bash
# Trains adversarial training alone and with each defense on the digits, three seeds each, judges all of them, and sets
# them side by side. Half an hour on two CPU cores; started again, it goes on where it was stopped.
# Usage: launch/small_table.sh [FOLDER]   (default: runs/small_table; the page is FOLDER/report.html)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

folder=${1:-runs/small_table}
ensure_environment ""
workdirs=()
for name in at at_cas at_cifs at_fsr at_sns at_kwta; do
  for seed in 0 1 2; do
    workdir=$folder/${name}_$seed
    "$python" -m robustjax.train --config="configs/digits.py:$name" --config.seed="$seed" --workdir="$workdir"
    "$python" -m robustjax.evaluate --workdir="$workdir" --attacks=clean,pgd20
    if [ "$name" = at ]; then # SAP takes no part in training
      "$python" -m robustjax.evaluate --workdir="$workdir" --attacks=clean,pgd20 --defense=sap:sampler=bernoulli
    fi
    workdirs+=("$workdir")
  done
done
"$python" -m robustjax.report --workdirs="$(IFS=,; echo "${workdirs[*]}")" --output="$folder/report.html"
