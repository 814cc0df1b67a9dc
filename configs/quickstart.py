"""A small model on a few hundred or thousand cells, on a laptop CPU.

  python -m geneformer_jax.pretrain --config=configs/quickstart.py \\
      --config.data.store=STORE --workdir=RUN

Hardware: any CPU with 2 cores.
Hours: 0.04 for 700 cells (2.3 minutes, measured on such a CPU, a quarter of it compiling).
Loss: 4.9 nats on 70 held-out cells of 700 (always guessing by frequency: 6.4).
"""

from ml_collections import ConfigDict

from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.training.config import pretrain_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    model = EncoderConfig(
        vocabulary_size=1,
        layers=3,
        width=128,
        heads=2,
        feed_forward=256,
        positions=512,
        dropout=0.1,
        attention_dropout=0.0,
    )
    config = pretrain_config(model, vocabulary_size=0)  # 0: that of the store
    config.data.cells_per_batch = 16
    config.data.max_buckets = 3
    config.steps = 300
    # Masked genes alone make no good embedding of cells in so short a time.
    config.objective.contrastive = 0.2
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 30
    config.optimizer.weight_decay = 0.01
    config.evaluation.held_out_cells = 70
    config.evaluation.every_steps = 100
    config.checkpoint.every_steps = 100
    config.log_every_steps = 20
    return config
