#!/usr/bin/env bash
# Make the shares of a command in a Slurm array, one in each task, and then join them.
#
#   job=$(sbatch --parsable --array=0-199 launch/slurm_array.sh tokenize --counts=CORPUS \
#       --vocabulary=VOCABULARY --output=STORE)
#   sbatch --dependency=afterok:"$job" launch/slurm_array.sh tokenize --counts=CORPUS \
#       --vocabulary=VOCABULARY --output=STORE
#
# The same for build_vocabulary, embed, perturb, attend and predict; with --gres=gpu:1 in front of
# launch/slurm_array.sh each task has a GPU. A screen (perturb --screen --settle) takes the array
# twice before the join. Tasks that were killed are given again, alone, with the number of all shares:
#
#   SHARES=200 sbatch --array=17,33 launch/slurm_array.sh tokenize ...
#
# Submit from a folder that all nodes see; PYTHON is the interpreter that has the project.

#SBATCH --job-name=geneformer-shares
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=geneformer-%A-%a.log
set -euo pipefail

command=${1:?the name of a command, and its flags}
shift
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  part="--shard=$SLURM_ARRAY_TASK_ID/${SHARES:-$SLURM_ARRAY_TASK_COUNT}"
else
  part=--finish
fi
exec "${PYTHON:-python3}" -m "geneformer_jax.$command" "$@" "$part"
