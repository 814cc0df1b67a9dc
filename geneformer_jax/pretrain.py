"""Pretrain a model by masked gene prediction.

  python -m geneformer_jax.pretrain --config=configs/quickstart.py \\
      --config.data.store=STORE --workdir=RUN

Reads a cell store written by `tokenize`. Writes checkpoints, metrics.jsonl, provenance.json and a
figure of the loss into the workdir. Any value of the configuration file can be changed on the
command line (--config.optimizer.learning_rate=5e-4). Run the same command again to resume.
"""

from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from geneformer_jax.common import door
from geneformer_jax.common.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, e.g. configs/quickstart.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run: a new one, or one to resume.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Check everything, say what the run would do and cost, and stop."
)
_PROCESSES = flags.DEFINE_integer(
    "processes", 1, "Processes of this run; 0 takes what Slurm or the TPU slice tells."
)
_PROCESS = flags.DEFINE_integer("process", 0, "Which of them this is, from 0.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, where all processes meet."
)


def main() -> None:
    """Pretrains as the flags say, then reports and draws the loss."""
    door.require("config", *([] if _DRY_RUN.value else ["workdir"]))
    # What imports JAX's heavier companions waits until the flags are known to be right.
    _join_processes()
    from geneformer_jax.analysis.figures import loss_curve_figure, save_figure
    from geneformer_jax.training.config import typed_config
    from geneformer_jax.training.loop import describe_pretraining, pretrain
    from geneformer_jax.training.telemetry import read_metrics

    config, workdir = typed_config(_CONFIG.value), Path(_WORKDIR.value)
    if _DRY_RUN.value:
        print("\n".join(describe_pretraining(config)))
        return
    result = pretrain(config, workdir)
    if jax.process_index():
        return
    print("\n".join(result.report()))
    losses = {name.replace("_", " "): score.loss for name, score in result.baselines.items()}
    save_figure(loss_curve_figure(read_metrics(workdir), losses), workdir / "loss")
    print(f"checkpoint: {result.checkpoint}\nloss curve: {workdir / 'loss.png'}")


def _join_processes() -> None:
    if _PROCESSES.value == 0:
        jax.distributed.initialize()
    elif _PROCESSES.value > 1:
        door.require("coordinator")
        if not 0 <= _PROCESS.value < _PROCESSES.value:
            raise InputError(
                f"--process is {_PROCESS.value}, but must be 0 to {_PROCESSES.value - 1}"
            )
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)


if __name__ == "__main__":
    door.run(main)
