#!/usr/bin/env bash
# Judges adversarial training alone and with each defense on the digits by the usual protocol, AutoAttack and the adaptive
# attacks, and sets them side by side. Trains what launch/small_table.sh has not trained yet (one seed). Started again, it
# goes on where it was stopped.
# Usage: launch/verdicts.sh [FOLDER]   (default: runs/small_table; the page is FOLDER/verdicts.html)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

folder=${1:-runs/small_table}
attacks=clean,pgd20,autoattack,adaptive
ensure_environment ""
workdirs=()
judge() { # WORKDIR FOLDER_OF_RECORDS [FLAGS...]
  if [ ! -e "$2/adaptive.json" ]; then
    "$python" -m robustjax.evaluate --workdir="$1" --attacks="$attacks" "${@:3}"
  fi
}
for name in at at_cas at_cifs at_fsr at_sns at_kwta; do
  workdir=$folder/${name}_0
  "$python" -m robustjax.train --config="configs/digits.py:$name" --config.seed=0 --workdir="$workdir"
  judge "$workdir" "$workdir/evaluation"
  if [ "$name" = at ]; then # SAP and MeanSparse take no part in training
    judge "$workdir" "$workdir/evaluation/sap:sampler=bernoulli" --defense=sap:sampler=bernoulli
    judge "$workdir" "$workdir/evaluation/meansparse:alpha=0.2" --defense=meansparse:alpha=0.2
  fi
  workdirs+=("$workdir")
done
"$python" -m robustjax.report --workdirs="$(IFS=,; echo "${workdirs[*]}")" --output="$folder/verdicts.html"
