"""Geneformer V1-10M on V100s, which have float16 but no bfloat16 units.

  python -m geneformer_jax.pretrain --config=configs/pretrain_v1_10m_v100.py \\
      --config.data.store=STORE --workdir=RUN

The paper's recipe (see pretrain_v1_10m.py) in float16 with dynamic loss scaling and memory-linear
attention, weights and optimizer state spread over the devices. Needs the [v100] extra: CUDA 13 and
newer cuDNN have dropped this chip.
"""

from ml_collections import ConfigDict

from geneformer_jax.training.config import pretrain_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = pretrain_config("v1_10m")
    config.data.cells_per_batch = 144  # 12 on each of 12 devices
    config.mesh.data = 0
    config.mesh.fsdp = 4  # the devices of one node
    config.runtime.precision = "float16"
    config.runtime.attention = "chunked"
    config.evaluation.held_out_cells = 10_000
    config.evaluation.every_steps = 10_000
    config.checkpoint.every_steps = 5_000
    return config
