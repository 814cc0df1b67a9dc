"""Geneformer V1-10M, by the recipe of the paper (Nature 2023).

  python -m geneformer_jax.pretrain --config=configs/pretrain_v1_10m.py \\
      --config.data.store=STORE --workdir=RUN

STORE: cells tokenised with the original's 30M vocabulary (25,426 tokens, --max_length=2048).
Recipe: batches of 12 cells on each of 12 devices, learning rate 1e-3, linear, 10,000 steps of
warmup, weight decay 0.001, dropout 0.02, 3 epochs, float32.
Hardware: the paper's 12 V100, or any number of devices that divides 144.
Hours: the original took about 3 days for 27.4 million cells. Estimates, not measurements: at most
52 on 12 V100 if every cell had 2,048 tokens, 7 if every cell had 512 (30 % of the stated peak).
Loss: 2.7 to 3.2 nats, the original's weights on cells held out by others; not reached here yet.
"""

from ml_collections import ConfigDict

from geneformer_jax.training.config import pretrain_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = pretrain_config("v1_10m")
    config.data.cells_per_batch = 144  # over all devices
    config.epochs = 3
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 10_000
    config.optimizer.weight_decay = 0.001
    config.evaluation.held_out_cells = 10_000
    config.evaluation.every_steps = 10_000
    config.checkpoint.every_steps = 5_000
    return config
