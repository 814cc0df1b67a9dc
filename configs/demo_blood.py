"""The small model of blood cells that comes with the package, on a laptop CPU.

  python -m geneformer_jax.pretrain --config=configs/demo_blood.py \\
      --config.data.store=STORE --workdir=RUN

STORE: 6,003 blood cells of at most 1,024 tokens; `launch/demo_blood.py` makes it.
Recipe: embeddings of genes that begin as components of their ranks; masked genes, and a contrastive
loss of each cell and a view of it; Muon; 16 cells a step.
Hardware: any CPU.
Hours: 1.1 on 1 core (measured).
Loss: 4.51 nats on 200 held-out cells (guessing by frequency: 8.53).
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
        positions=1_024,
        dropout=0.02,
        attention_dropout=0.0,
    )
    config = pretrain_config(model, vocabulary_size=0)  # 0: that of the store
    config.initial_genes = "components"
    config.steps = 2_400
    config.data.cells_per_batch = 16
    config.data.max_buckets = 3
    config.objective.contrastive = 0.05
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup_steps = 20
    config.evaluation.held_out_cells = 200
    config.evaluation.every_steps = 100
    config.checkpoint.every_steps = 50
    config.log_every_steps = 10
    return config
