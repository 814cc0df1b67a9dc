#!/usr/bin/env bash
# Pretrain, or fine-tune, in several processes on this machine, each with its share of the devices.
#
#   PROCESSES=2 launch/local.sh --config=configs/pretrain_v1_10m.py \
#       --config.data.store=STORE --workdir=RUN
#
# All arguments go to `python -m geneformer_jax.pretrain`, or to the COMMAND that is named, as in
# COMMAND=finetune. Any process that fails ends the others.
# PYTHON names the interpreter, PORT a free port on which the processes meet.
set -euo pipefail

processes="${PROCESSES:-2}"
python="${PYTHON:-python3}"
coordinator="127.0.0.1:${PORT:-9876}"

pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((process = 0; process < processes; process++)); do
  "$python" -m "geneformer_jax.${COMMAND:-pretrain}" --processes="$processes" --process="$process" \
    --coordinator="$coordinator" "$@" &
  pids+=("$!")
done
for ((process = 0; process < processes; process++)); do
  wait -n
done
