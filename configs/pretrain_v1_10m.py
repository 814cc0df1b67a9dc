"""Geneformer V1-10M, by the recipe of the paper.

  python -m geneformer_jax.pretrain --config=configs/pretrain_v1_10m.py \\
      --config.data.store=STORE --workdir=RUN

STORE: cells tokenised with the original's 30M vocabulary (25,426 tokens, --max_length=2048).
The original took about 3 days for 3 epochs over 27.4 million cells on 12 V100 (Nature 2023): 12
cells a device on 12 devices, learning rate 1e-3, linear, 10,000 steps of warmup. Held-out loss of
the original on other people's splits: 2.7 to 3.2 nats.
"""

from ml_collections import ConfigDict

from geneformer_jax.training.config import pretrain_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = pretrain_config("v1_10m")
    config.data.cells_per_batch = 144  # over all devices, which must divide it
    config.epochs = 3
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 10_000
    config.optimizer.weight_decay = 0.001
    config.evaluation.held_out_cells = 10_000
    config.evaluation.every_steps = 10_000
    config.checkpoint.every_steps = 5_000
    return config
