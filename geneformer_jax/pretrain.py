"""Pretrain a model by masked gene prediction.

  python -m geneformer_jax.pretrain --config=configs/quickstart.py \\
      --config.data.store=STORE --workdir=RUN

Reads a cell store written by `tokenize`. Writes checkpoints, metrics.jsonl, provenance.json and a
figure of the loss into the workdir. Any value of the configuration file can be changed on the
command line (--config.optimizer.learning_rate=5e-4). Run the same command again to resume.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from geneformer_jax.common import door

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, e.g. configs/quickstart.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run: a new one, or one to resume.")


def main() -> None:
    """Pretrains as the flags say, then reports and draws the loss."""
    door.require("config", "workdir")
    # JAX takes seconds to import, which --help and a mistyped flag should not have to wait for.
    from geneformer_jax.analysis.figures import loss_curve_figure, save_figure
    from geneformer_jax.training.config import typed_config
    from geneformer_jax.training.loop import pretrain
    from geneformer_jax.training.telemetry import read_metrics

    workdir = Path(_WORKDIR.value)
    result = pretrain(typed_config(_CONFIG.value), workdir)
    print("\n".join(result.report()))
    losses = {name.replace("_", " "): score.loss for name, score in result.baselines.items()}
    save_figure(loss_curve_figure(read_metrics(workdir), losses), workdir / "loss")
    print(f"checkpoint: {result.checkpoint}\nloss curve: {workdir / 'loss.png'}")


if __name__ == "__main__":
    door.run(main)
