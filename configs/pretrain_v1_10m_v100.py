"""Geneformer V1-10M on V100s, which have float16 but no bfloat16 units.

  sbatch launch/slurm_v100.sh --config.data.store=STORE --workdir=RUN

  python -m geneformer_jax.pretrain --config=configs/pretrain_v1_10m_v100.py \\
      --config.data.store=STORE --workdir=RUN

The paper's recipe (see pretrain_v1_10m.py) in float16 with dynamic loss scaling and memory-linear
attention; weights and optimizer state are spread over the devices of a node.
Hardware: 12 V100 on 3 nodes, with the [volta] extra (CUDA 13 and newer cuDNN dropped this chip).
Hours: estimates, not measurements: 6.5 for 27.4 million cells if every cell had 2,048 tokens and
the devices reached 30 % of their float16 peak, of which memory-linear attention may well miss half.
Loss: that of pretrain_v1_10m.py.
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
