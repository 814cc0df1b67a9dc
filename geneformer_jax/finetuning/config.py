"""The configuration of fine-tuning: typed, checked, and filled from an ml_collections file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from geneformer_jax.batches.plan import DataConfig
from geneformer_jax.common.config import fill, keys_of, require
from geneformer_jax.finetuning.losses import LossConfig
from geneformer_jax.finetuning.stopping import StoppingConfig
from geneformer_jax.finetuning.trainable import TuningConfig
from geneformer_jax.model.config import EncoderConfig, preset
from geneformer_jax.model.heads import HeadOptions
from geneformer_jax.model.runtime import RuntimeConfig
from geneformer_jax.model.sharding import MeshConfig
from geneformer_jax.training.checkpoint import CheckpointConfig
from geneformer_jax.training.optimizer import OptimizerConfig


def _data() -> DataConfig:
    return DataConfig(cells_per_batch=12, max_buckets=8)


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=5e-5, warmup_steps=0, warmup_ratio=0.1)


def _checkpoint() -> CheckpointConfig:
    return CheckpointConfig(keep=1)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of one network on labelled cells or genes.

    Attributes:
      model: fields of EncoderConfig, for training from scratch only; vocabulary_size 0 takes the
        size of the store's vocabulary.
      epochs: passes over the training cells, used where steps is 0.
      steps: optimizer steps.
      seed: of the new head, the shuffle and dropout.
      log_every_steps: steps between lines in metrics.jsonl.
    """

    model: dict[str, Any] = dataclasses.field(metadata=keys_of(EncoderConfig))
    data: DataConfig = dataclasses.field(default_factory=_data)
    head: HeadOptions = dataclasses.field(default_factory=HeadOptions)
    tuning: TuningConfig = TuningConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = dataclasses.field(default_factory=_optimizer)
    mesh: MeshConfig = MeshConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=_checkpoint)
    stopping: StoppingConfig = StoppingConfig()
    epochs: int = 1
    steps: int = 0
    seed: int = 42
    log_every_steps: int = 10

    def __post_init__(self):
        require(self.steps >= 0, "steps", self.steps, "0 (count epochs) or more")
        require(self.steps or self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "it must not be negative")
        require(self.log_every_steps >= 1, "log_every_steps", self.log_every_steps, "at least 1")

    def encoder(self, vocabulary_size: int) -> EncoderConfig:
        """Returns the shape of a network trained from scratch."""
        return EncoderConfig(**{**self.model, "vocabulary_size": vocabulary_size})


def finetune_config(model: str = "v1_10m", **changes: Any) -> ConfigDict:
    """Returns every default as a ConfigDict for a configuration file to change.

    The defaults are the paper's (learning rate 5e-5, linear, weight decay 0.001, batches of 12
    cells, one epoch) but for warmup, which is the first tenth of the steps: the paper's 500 steps
    are more than a small set has.

    Args:
      model: preset whose shape is trained where no checkpoint is given.
      **changes: to fields of FinetuneConfig.
    """
    fields = dataclasses.asdict(preset(model)) | {"vocabulary_size": 0}
    return ConfigDict(dataclasses.asdict(FinetuneConfig(model=fields, **changes)))


def typed_finetune_config(config: ConfigDict | Mapping[str, Any]) -> FinetuneConfig:
    """Turns a ConfigDict (or a dict read back from JSON) into checked dataclasses.

    Raises:
      InputError: an unknown key, or a value that cannot be.
    """
    return fill(FinetuneConfig, config)


def with_layers(config: FinetuneConfig, layers: int) -> FinetuneConfig:
    """Returns the configuration of a network of another depth, for training from scratch."""
    tuning = dataclasses.replace(config.tuning, freeze_layers=0)
    return dataclasses.replace(config, model={**config.model, "layers": layers}, tuning=tuning)
