"""The configuration of a pretraining run: typed, checked, filled from an ml_collections file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from geneformer_jax.batches.masking import MaskingConfig
from geneformer_jax.batches.plan import DataConfig
from geneformer_jax.common.config import fill, keys_of, require
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import EncoderConfig, preset
from geneformer_jax.model.runtime import RuntimeConfig
from geneformer_jax.model.sharding import MeshConfig
from geneformer_jax.training.checkpoint import CheckpointConfig
from geneformer_jax.training.evaluation import EvaluationConfig
from geneformer_jax.training.optimizer import OptimizerConfig
from geneformer_jax.training.profiling import ProfileConfig


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """A whole pretraining run.

    Attributes:
      model: fields of EncoderConfig. vocabulary_size 0 takes the size of the store's vocabulary.
      initial: checkpoint or workdir of another run whose weights this one begins with (continual
        pretraining); empty to draw them. A checkpoint in the run's own workdir goes before it.
      epochs: passes over the training cells, used where steps is 0.
      steps: optimizer steps.
      seed: of initial weights, split, shuffle, masks and dropout.
      log_every_steps: steps between lines in metrics.jsonl.
    """

    model: dict[str, Any] = dataclasses.field(metadata=keys_of(EncoderConfig))
    initial: str = ""
    data: DataConfig = DataConfig()
    masking: MaskingConfig = MaskingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    profile: ProfileConfig = ProfileConfig()
    epochs: int = 3
    steps: int = 0
    seed: int = 42
    log_every_steps: int = 100

    def __post_init__(self):
        require(self.steps >= 0, "steps", self.steps, "0 (count epochs) or more")
        require(self.steps or self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "it must not be negative")
        require(self.log_every_steps >= 1, "log_every_steps", self.log_every_steps, "at least 1")

    def encoder(self, vocabulary_size: int) -> EncoderConfig:
        """Returns the model's shape for a store with this vocabulary.

        Raises:
          InputError: the configuration states another vocabulary size.
        """
        stated = self.model.get("vocabulary_size", 0)
        if stated not in (0, vocabulary_size):
            raise InputError(
                f"`config.model.vocabulary_size` is {stated} but the store's vocabulary has "
                f"{vocabulary_size} tokens; tokenize with the vocabulary the model is meant for, "
                "or set it to 0 to take the store's"
            )
        return EncoderConfig(**{**self.model, "vocabulary_size": vocabulary_size})


def pretrain_config(model: str | EncoderConfig, vocabulary_size: int | None = None) -> ConfigDict:
    """Returns every default of a run as a ConfigDict for a configuration file to change.

    Args:
      model: a preset's name or a shape.
      vocabulary_size: replaces the shape's; 0 takes the store's.
    """
    shape = preset(model) if isinstance(model, str) else model
    fields = dataclasses.asdict(shape)
    if vocabulary_size is not None:
        fields["vocabulary_size"] = vocabulary_size
    return ConfigDict(dataclasses.asdict(PretrainConfig(model=fields)))


def typed_config(config: ConfigDict | Mapping[str, Any]) -> PretrainConfig:
    """Turns a ConfigDict (or a dict read back from JSON) into checked dataclasses.

    Raises:
      InputError: an unknown key, or a value that cannot be.
    """
    return fill(PretrainConfig, config)
