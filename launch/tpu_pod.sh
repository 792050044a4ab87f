#!/usr/bin/env bash
# Trains on a slice of TPU VMs, steered from here: plans the run, requests the slice or takes the one that is there,
# copies this checkout, installs it, and runs robustjax.train on all workers. A slice that is taken away is requested
# again, and the run goes on from its newest checkpoint, until it is trained to the end.
#
# Usage: launch/tpu_pod.sh --name=NAME --zone=ZONE --accelerator=TYPE --nfs=HOST:/SHARE [OPTIONS] -- TRAIN_ARGUMENTS
#   --name, --zone, --accelerator   of the slice, such as pod, us-west4-a, v5litepod-16
#   --nfs             shared file system, mounted at /mnt/robustjax on every worker; --workdir lies there
#   --version=NAME    the TPU's software (default: v2-alpha-tpuv5-lite)
#   --project=NAME    default: gcloud's own
#   --spot            a slice that may be taken away at any time
#   --max_restarts=N  how many times to begin again (default: 20)
#   --delete          delete the slice once the run is trained to the end
#   --no_plan         request the slice without knowing whether the run fits it
#   --dry_run         print the commands instead of running them
#
# PYTHON (default: .venv/bin/python) has robustjax[tpu] for the plan.
set -euo pipefail

readonly mount=/mnt/robustjax poll_seconds=${POLL_SECONDS:-30}
readonly stopped=75  # what a run ends with that was told to stop and has saved

refuse() {
  echo "error: $1 (usage: head -17 launch/tpu_pod.sh)" >&2
  exit 2
}

fail() {
  echo "error: $1" >&2
  exit 1
}

name='' zone='' accelerator='' nfs='' version=v2-alpha-tpuv5-lite project='' spot='' max_restarts=20 delete='' no_plan=''
dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=* | --zone=* | --accelerator=* | --nfs=* | --version=* | --project=* | --max_restarts=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --spot | --delete | --no_plan | --dry_run) printf -v "${1#--}" yes ;;
    --) shift && break ;;
    *) refuse "unexpected argument '$1'" ;;
  esac
  shift
done
for option in name zone accelerator nfs; do
  [ -n "${!option}" ] || refuse "--$option is missing"
done
[[ $nfs == ?*:/* ]] || refuse "--nfs must be HOST:/SHARE, got '$nfs'"
[[ $max_restarts =~ ^[0-9]+$ ]] || refuse "--max_restarts must be a number, got '$max_restarts'"
[[ " $* " == *" --config="* ]] || refuse "no --config=FILE among the training arguments after --"
[[ " $* " == *" --workdir=$mount/"* ]] || refuse "no --workdir=$mount/... among the training arguments after --"
[ -n "$dry_run" ] || command -v gcloud >/dev/null || refuse "gcloud is not installed"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly python=${PYTHON:-.venv/bin/python}
[ -n "$no_plan$dry_run" ] || [ -x "$python" ] || refuse "no $python to plan with; set PYTHON, or give --no_plan"
where=(--zone="$zone" ${project:+--project="$project"})

run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() {
  run gcloud compute tpus "$1" "$2" "$name" "${where[@]}" "${@:3}"
}

on_all_workers() {
  tpu tpu-vm ssh --worker=all --command="$1"
}

# What does not fit is not paid for.
plan() {
  local slice=$accelerator status=0
  # Google counts the cores of a v4 or v5p, two a chip.
  [[ ! $slice =~ ^(v4|v5p)-([0-9]+)$ ]] || slice=${BASH_REMATCH[1]}-$((BASH_REMATCH[2] / 2))
  run "$python" -m robustjax.train --plan="$slice" "$@" || status=$?
  case $status in
    0) ;;
    1) refuse "the run does not fit $accelerator, as said above; --no_plan requests it all the same" ;;
    *) refuse "the run cannot be planned for $accelerator, as said above; --no_plan requests it all the same" ;;
  esac
}

requested=''
# ABSENT, READY, UNKNOWN, or what Google says of the request (WAITING_FOR_RESOURCES, SUSPENDED, ...) or of its node.
state() {
  if [ -n "$dry_run" ]; then
    echo "${requested:-ABSENT}"
    return
  fi
  local found
  if ! found=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>&1)
  then
    [[ $found == *NOT_FOUND* ]] && echo ABSENT && return
    echo "$found" >&2
    found=UNKNOWN
  elif [[ $found == *ACTIVE ]]; then
    found=$(gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)') || found=UNKNOWN
  fi
  echo "${found##*$'\n'}"  # what comes before are warnings
}

get_slice() {
  local now requests=0 unknown=0
  while now=$(state) && [ "$now" != READY ]; do
    case $now in
      ABSENT)
        [ -n "$no_plan" ] || plan "$@"
        no_plan=yes
        [ $((requests += 1)) -le 3 ] || fail "the request for $name has failed three times"
        tpu queued-resources create --node-id="$name" --accelerator-type="$accelerator" --runtime-version="$version" \
          ${spot:+--spot}
        requested=READY
        ;;
      FAILED | SUSPENDED | PREEMPTED | TERMINATED) tpu queued-resources delete --force --quiet ;;
      UNKNOWN)
        [ $((unknown += 1)) -le 20 ] || fail "gcloud does not say how $name is"
        sleep "$poll_seconds"
        ;;
      *) sleep "$poll_seconds" ;;
    esac
  done
}

install() {
  local archive=${TMPDIR:-/tmp}/robustjax-$name.tgz
  # What a lost connection has left running is told to stop: it holds the TPU and the workdir. The images' own Python is
  # older than ours: uv brings another.
  run bash -c "git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -czf $archive" &&
    run gcloud compute tpus tpu-vm scp "$archive" "$name:robustjax.tgz" "${where[@]}" --worker=all &&
    on_all_workers "set -e
if [ -e robustjax.pid ] && kill \$(cat robustjax.pid) 2>/dev/null; then
  timeout 600 tail --pid=\$(cat robustjax.pid) -f /dev/null
fi
mountpoint -q $mount || {
  sudo apt-get -qq update; sudo apt-get -qq install -y nfs-common
  sudo mkdir -p $mount; sudo mount -t nfs $nfs $mount
}
rm -rf robustjax; mkdir robustjax; tar -xzf robustjax.tgz -C robustjax
python3 -m pip install --quiet --user uv
[ -x robustjax-env/bin/python ] || python3 -m uv venv --quiet --python 3.12 robustjax-env
python3 -m uv pip install --quiet --python robustjax-env --editable './robustjax[tpu]'"
}

train() {
  local arguments
  arguments=$(printf '%q ' --distributed=auto --stopped_status="$stopped" "$@")
  on_all_workers "echo \$\$ > robustjax.pid; cd robustjax
TFDS_DATA_DIR=\${TFDS_DATA_DIR:-$mount/data} exec ../robustjax-env/bin/python -m robustjax.train ${arguments% }"
}

for ((restart = 0; ; restart++)); do
  get_slice "$@"
  status=0
  if install; then train "$@" || status=$?; else status=1; fi
  case $status in
    0) break ;;
    2) exit 2 ;;  # something given is wrong, and would be the next time
  esac
  [ "$restart" -lt "$max_restarts" ] ||
    fail "the run ended with status $status after $restart restarts; the same command goes on from there"
  echo "the run ended with status $status; beginning again ($((restart + 1)) of $max_restarts)" >&2
  sleep "$poll_seconds"
done
[ -z "$delete" ] || tpu queued-resources delete --force --quiet
