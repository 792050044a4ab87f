#!/usr/bin/env bash
# Trains (or judges) with N processes on this machine as if they were N machines.
# Usage: launch/local_multiprocess.sh [--dry_run] N -- ARGUMENTS
#   launch/local_multiprocess.sh 2 -- robustjax.train --config=configs/quickstart.py --workdir=runs/two
#   launch/local_multiprocess.sh 2 -- robustjax.evaluate --workdir=runs/two
# --dry_run prints the commands instead. PYTHON (default: python3) runs them, PORT (default: a free one) is where they
# meet. On CPU each process has JAX_NUM_CPU_DEVICES devices (default: 2); on GPUs give each its own with
# CUDA_VISIBLE_DEVICES inside a launcher such as Slurm. SIGTERM and SIGINT are handed on to all of them; the exit status
# is 0 only if all of theirs are.
set -euo pipefail

usage() {
  sed -n '3,5p' "${BASH_SOURCE[0]}" | cut -c3- >&2
  exit 2
}

dry_run=
if [ "${1:-}" = --dry_run ]; then
  dry_run=1
  shift
fi
[[ "${1:-}" =~ ^[1-9][0-9]*$ && "${2:-}" = -- && $# -ge 3 ]] || usage
processes=$1
module=$3
shift 3

python=${PYTHON:-python3}
port=${PORT:-}
if [ -z "$port" ]; then
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
fi
export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-2} JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo

pids=()
for ((i = 0; i < processes; i++)); do
  command=("$python" -m "$module" "$@" "--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$i")
  if [ -n "$dry_run" ]; then
    printf '%q ' "JAX_NUM_CPU_DEVICES=$JAX_NUM_CPU_DEVICES" "${command[@]}"
    printf '&\n'
  else
    "${command[@]}" &
    pids+=($!)
  fi
done
[ -z "$dry_run" ] || exit 0

trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM
trap 'kill -INT "${pids[@]}" 2>/dev/null || true' INT
status=0
for pid in "${pids[@]}"; do
  # A signal ends `wait` before the process ends: wait again.
  while true; do
    code=0
    wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  [ "$code" -eq 0 ] || status=$code
done
if [ "$status" -gt 128 ]; then
  echo "error: a process was killed or lost (status $status) and the others stopped; the same command goes on" >&2
fi
exit "$status"
