#!/usr/bin/env bash
# Pretrain on a Cloud TPU slice: makes it if need be, installs the project, starts every host.
#
#   NAME=geneformer ZONE=us-west4-a TYPE=v5litepod-256 launch/tpu_slice.sh \
#       --config=configs/pretrain_v2_104m.py --config.data.store=STORE --workdir=RUN
#
# All arguments go to `python -m geneformer_jax.pretrain`. STORE and RUN must be on storage that all
# hosts see, such as a mounted bucket or Filestore. PROJECT names what pip installs on the hosts (by
# default the released package). Give the same command again to go on after an interruption; delete
# the slice when done:  gcloud compute tpus tpu-vm delete NAME --zone=ZONE
set -euo pipefail

name="${NAME:?the name of the slice}"
zone="${ZONE:?the zone, such as us-west4-a}"
type="${TYPE:?the size, such as v5litepod-256}"
project="${PROJECT:-geneformer_jax}"

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

if ! gcloud compute tpus tpu-vm describe "$name" --zone="$zone" >/dev/null 2>&1; then
  gcloud compute tpus tpu-vm create "$name" --zone="$zone" --accelerator-type="$type" \
    --version=tpu-ubuntu2204-base
fi
# Configurations are files of the project's folder, which the hosts have not got.
gcloud compute tpus tpu-vm scp --recurse configs "$name": --zone="$zone" --worker=all
on_all_hosts "python3 -m venv geneformer && geneformer/bin/pip install -q '${project}[tpu]'"
# --processes=0: JAX learns from the slice which process it is and where the others are.
on_all_hosts "geneformer/bin/python -m geneformer_jax.pretrain --processes=0 ${*@Q}"
