#!/usr/bin/env bash
# Pretrain V1-10M as the paper did: 12 V100 on 3 nodes of 4, one process each, under Slurm.
#
#   sbatch launch/slurm_v100.sh --config.data.store=STORE --workdir=RUN
#
# All arguments go to `python -m geneformer_jax.pretrain`. Submit from the project's folder, after
# installing it with the [volta] extra (CUDA 13 and newer cuDNN have dropped this chip) into the
# environment that PYTHON lies in. STORE and RUN must be on storage that all nodes see.
#
# Two minutes before the time is up Slurm sends SIGTERM: the state is saved, and the job is queued
# again and goes on where it was.

#SBATCH --job-name=geneformer
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:v100:4
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=geneformer-%j.log
set -euo pipefail

stopped=143 # the state was saved after SIGTERM
status=0
# --processes=0: JAX learns from Slurm which process and GPU it is and where the others are.
srun --kill-on-bad-exit=1 "${PYTHON:-python3}" -m geneformer_jax.pretrain \
  --config=configs/pretrain_v1_10m_v100.py --processes=0 "$@" || status=$?
if ((status == stopped)); then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
