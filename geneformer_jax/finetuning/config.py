"""What fine-tuning is told: typed, checked, and filled from an ml_collections file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from geneformer_jax.common.config import one_of, require
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import EncoderConfig, preset
from geneformer_jax.model.heads import POOLINGS
from geneformer_jax.model.lora import LoraConfig
from geneformer_jax.model.runtime import RuntimeConfig
from geneformer_jax.model.sharding import MeshConfig
from geneformer_jax.training.checkpoint import CheckpointConfig
from geneformer_jax.training.config import DataConfig, fill
from geneformer_jax.training.optimizer import OptimizerConfig

NATURAL, BALANCED, NONE = "natural", "balanced", "none"


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """The head, see model.heads.HeadConfig.

    Attributes:
      pooling: what stands for a cell: first (as the original), mean or attention.
      extra_layer: one more transformer layer below the head.
      dropout: rate before the last linear layer; -1 takes the encoder's, as the original.
    """

    pooling: str = "first"
    extra_layer: bool = False
    dropout: float = -1.0

    def __post_init__(self):
        one_of("head.pooling", self.pooling, POOLINGS)
        valid = self.dropout == -1 or 0 <= self.dropout < 1
        require(valid, "head.dropout", self.dropout, "in [0, 1), or -1 (that of the encoder)")


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """Which weights learn, and how fast. What does not learn has no optimizer state.

    Attributes:
      freeze_layers: the lowest so many layers stay as they are; the embeddings still learn, as in
        the original.
      freeze_embeddings: the embeddings stay as they are.
      head_only: only the head learns.
      layer_decay: learning rate of a layer as a multiple of that of the layer above it; 1 for the
        same everywhere. The head has the full rate, the embeddings the lowest.
      lora_rank: above 0, the encoder stays as it is and low-rank factors learn beside it.
      lora_alpha: their product is multiplied by alpha / rank.
      lora_targets: projections that have them, separated by commas.
    """

    freeze_layers: int = 0
    freeze_embeddings: bool = False
    head_only: bool = False
    layer_decay: float = 1.0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: str = "query,value"

    def __post_init__(self):
        for name in ("freeze_layers", "lora_rank"):
            require(getattr(self, name) >= 0, f"tuning.{name}", getattr(self, name), "0 or more")
        require(
            0 < self.layer_decay <= 1, "tuning.layer_decay", self.layer_decay, "above 0, at most 1"
        )
        if self.lora_rank and (self.freeze_layers or self.freeze_embeddings or self.head_only):
            raise InputError(
                f"--config.tuning.lora_rank {self.lora_rank} leaves the whole encoder as it is; "
                "leave freeze_layers, freeze_embeddings and head_only out"
            )
        if self.lora_rank:
            _ = self.lora

    @property
    def lora(self) -> LoraConfig | None:
        """The low-rank factors, None if there are none."""
        if not self.lora_rank:
            return None
        targets = tuple(each.strip() for each in self.lora_targets.split(",") if each.strip())
        return LoraConfig(self.lora_rank, self.lora_alpha, targets)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What counts how much.

    Attributes:
      class_weights: "none", or "balanced": losses of a class weigh by n / (C n_c); for genes n
        counts genes, not their occurrences.
      sampling: "natural", or "balanced": in an epoch, cells of all classes are drawn equally often.
    """

    class_weights: str = NONE
    sampling: str = NATURAL

    def __post_init__(self):
        one_of("loss.class_weights", self.class_weights, (NONE, BALANCED))
        one_of("loss.sampling", self.sampling, (NATURAL, BALANCED))


@dataclasses.dataclass(frozen=True)
class StoppingConfig:
    """Which step's weights are kept. All of it needs validation cells.

    Attributes:
      best: keep the weights of the evaluation with the lowest loss instead of the last.
      patience: stop after so many evaluations without a lower loss; 0 never stops.
      every_steps: steps between evaluations; 0 evaluates after each epoch. There is always one at
        the end.
    """

    best: bool = False
    patience: int = 0
    every_steps: int = 0

    def __post_init__(self):
        for name in ("patience", "every_steps"):
            require(getattr(self, name) >= 0, f"stopping.{name}", getattr(self, name), "0 or more")


def _data() -> DataConfig:
    return DataConfig(cells_per_batch=12, most_buckets=8)


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=5e-5, warmup_steps=500)


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

    model: dict[str, Any]
    data: DataConfig = dataclasses.field(default_factory=_data)
    head: HeadOptions = HeadOptions()
    tuning: TuningConfig = TuningConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = dataclasses.field(default_factory=_optimizer)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)
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

    The defaults are the paper's: learning rate 5e-5, linear after 500 steps of warmup, weight decay
    0.001, batches of 12 cells, one epoch.

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
