"""What a pretraining run is told: typed, checked, and filled from an ml_collections file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from geneformer_jax.batches.plan import MEGA_BATCH_MULTIPLIER, MOST_BUCKETS
from geneformer_jax.common.config import require
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.model.config import EncoderConfig, preset
from geneformer_jax.model.runtime import RuntimeConfig
from geneformer_jax.model.sharding import MeshConfig
from geneformer_jax.training.checkpoint import CheckpointConfig
from geneformer_jax.training.evaluation import EvaluationConfig
from geneformer_jax.training.optimizer import OptimizerConfig
from geneformer_jax.training.profiling import ProfileConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which cells, and how they form batches.

    Attributes:
      store: folder written by `tokenize`.
      tokens_per_batch: padded tokens in a batch over all devices (every step costs the same), or
      cells_per_batch: cells in a batch over all devices, as the original does; the other is 0.
      most_buckets: padded lengths at most; each is one more compiled program.
      packing: put several cells into each row, as long as the longest cell, instead of padding each
        to a bucket; needs tokens_per_batch.
      mega_batch_multiplier: batches in a length-grouped mega-batch.
      workers: processes that read ahead; 0 reads in threads.
    """

    store: str = ""
    tokens_per_batch: int = 0
    cells_per_batch: int = 0
    most_buckets: int = MOST_BUCKETS
    packing: bool = False
    mega_batch_multiplier: int = MEGA_BATCH_MULTIPLIER
    workers: int = 0

    def __post_init__(self):
        for name in ("most_buckets", "mega_batch_multiplier"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        require(self.workers >= 0, "data.workers", self.workers, "it must not be negative")
        require(
            not (self.packing and self.cells_per_batch),
            "data.cells_per_batch",
            self.cells_per_batch,
            "packed rows hold varying numbers of cells: set it to 0, and data.tokens_per_batch",
        )


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Shares of the masking rule, see batches.masking.MaskingRule, and where it is applied.

    Attributes:
      on_device: mask within the step instead of on the host, whose cores it relieves; the masks
        are the same.
    """

    selected_share: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    random_special_tokens: bool = False
    on_device: bool = False


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

    model: dict[str, Any]
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
                f"--config.model.vocabulary_size is {stated} but the store's vocabulary has "
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


def fill(kind: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Returns a dataclass of `kind`, and those within it, filled from nested mappings.

    Raises:
      InputError: an unknown key, or a value that cannot be.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            hint = did_you_mean(name, fields)
            raise InputError(f'--config has no key "{prefix}{name}"{hint}; see the file\'s keys')
        nested = fields[name].type
        if dataclasses.is_dataclass(nested):
            value = fill(nested, value, f"{prefix}{name}.")
        elif name == "model":
            value = _model_fields(value)
        arguments[name] = value
    return kind(**arguments)


def _model_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    known = [field.name for field in dataclasses.fields(EncoderConfig)]
    for name in values:
        if name not in known:
            raise InputError(f'--config has no key "model.{name}"{did_you_mean(name, known)}')
    return dict(values)
