"""Geneformer V1-10M by the recipe that needed least compute on a small model.

  python -m geneformer_jax.pretrain --config=configs/pretrain_fast.py \\
      --config.data.store=STORE --workdir=RUN

STORE: cells tokenised with the original's 30M vocabulary (25,426 tokens, --max_length=2048).
Recipe: Muon for the layers' matrices, 48 cells a step, a tenth of the steps of warmup, one epoch;
else as `configs/pretrain_v1_10m.py`.
Hardware: any number of devices that divides 48.
Hours: a third of `configs/pretrain_v1_10m.py`, of which it has the epochs.
Loss: not measured at this size. A model of 2.2 million weights on 14,000 blood cells
(benchmarks/time_to_loss.py, three seeds) was below the original recipe's loss in half its compute.
"""

from ml_collections import ConfigDict

from geneformer_jax.training.config import pretrain_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = pretrain_config("v1_10m")
    config.data.cells_per_batch = 48  # over all devices
    config.epochs = 1
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps, config.optimizer.warmup_ratio = 0, 0.1
    config.optimizer.weight_decay = 0.001
    config.evaluation.held_out_cells = 10_000
    config.evaluation.every_steps = 10_000
    config.checkpoint.every_steps = 5_000
    return config
