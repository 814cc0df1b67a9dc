"""The configuration of fine-tuning: typed, checked, and filled from an ml_collections file."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from geneformer_jax.batches.config import DataConfig
from geneformer_jax.common.config import (
    fill,
    keys_of,
    one_of,
    require,
    require_count,
    require_seed,
)
from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.classification.config import SplitRule
from geneformer_jax.model.config import (
    EncoderConfig,
    HeadOptions,
    LoraConfig,
    MeshConfig,
    RuntimeConfig,
    preset,
)
from geneformer_jax.training.config import CheckpointConfig, OptimizerConfig, check_tracker

NATURAL, BALANCED, NONE = "natural", "balanced", "none"


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How classes are weighted and sampled.

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
    """Early stopping, and which step's weights are kept. It needs validation cells.

    Attributes:
      best: keep the weights of the evaluation with the lowest loss instead of the last.
      patience: evaluations without a lower loss after which training stops; 0 never stops.
      every_steps: steps between evaluations; 0 evaluates after each epoch. There is always one at
        the end.
    """

    best: bool = False
    patience: int = 0
    every_steps: int = 0

    def __post_init__(self):
        for name in ("patience", "every_steps"):
            require(getattr(self, name) >= 0, f"stopping.{name}", getattr(self, name), "0 or more")


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """Which weights are trainable, and how fast they learn. Frozen ones have no optimizer state.

    Attributes:
      freeze_layers: number of frozen layers, from the lowest; the embeddings stay trainable, as in
        the original.
      freeze_embeddings: the embeddings are frozen too.
      head_only: only the head is trainable.
      layer_decay: learning rate of a layer as a multiple of that of the layer above it; 1 for the
        same everywhere. The head has the full rate, the embeddings the lowest.
      lora_rank: above 0, the encoder is frozen and low-rank factors are trained beside it.
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
                f"`config.tuning.lora_rank` {self.lora_rank} freezes the whole encoder; "
                "leave `config.tuning.freeze_layers`, `config.tuning.freeze_embeddings` and "
                "`config.tuning.head_only` out"
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
class SearchConfig:
    """A search; on the command line --config.search.NAME=VALUE.

    Attributes:
      space: one text for each value, "KEY: KIND ...", of a key of the configuration: "uniform LOW
        HIGH", "log LOW HIGH" (uniform in the logarithm), "int LOW HIGH" or "one of A, B, C".
      metric: score of the validation side: "loss" (minimised), or one that is maximised, such as
        "macro_f1".
      seed: of the draws.
      pruning_after: trials that are run to their end before others are compared with their median.
    """

    space: tuple[str, ...] = (
        "optimizer.learning_rate: log 1e-6 1e-3",
        "optimizer.weight_decay: uniform 0 0.3",
        "optimizer.warmup_ratio: uniform 0 0.3",
        "optimizer.schedule: one of linear, cosine",
    )
    metric: str = "macro_f1"
    seed: int = 0
    pruning_after: int = 5

    def __post_init__(self):
        object.__setattr__(self, "space", tuple(self.space))
        if not self.space:
            raise InputError("`config.search.space` is empty; name a value and its range")


@dataclasses.dataclass(frozen=True)
class MultitaskConfig(SplitRule):
    """Which obs columns are learned; on the command line --config.targets.NAME=VALUE.

    It is also the rule by which cells are split (see SplitRule), stratified by the first column: by
    its classes, or by the halves below and above its median.

    Attributes:
      name: short, for titles.
      classes: obs columns of classes, separated by commas.
      numbers: obs columns of numbers, separated by commas.
      weights: of the columns in the loss, as "column=2,column=0.5"; 1 where not named.
      group: obs column (donor, batch) whose cells are never on two sides of a fold.
    """

    section: ClassVar[str] = "targets"
    noun: ClassVar[str] = "cells"

    name: str = "targets"
    classes: str = ""
    numbers: str = ""
    weights: str = ""
    group: str = ""
    folds: int = 1
    valid_fraction: float = 0.1

    def columns(self, name: str) -> list[str]:
        """The columns listed in a field."""
        return [part.strip() for part in getattr(self, name).split(",") if part.strip()]


def typed_multitask(config: Mapping[str, Any]) -> MultitaskConfig:
    """Turns a configuration's section into a checked MultitaskConfig.

    Raises:
      InputError: an unknown key.
    """
    return fill(MultitaskConfig, config, "targets.")


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
      track: "wandb" or "mlflow": also keep the metrics for that tracker, in the workdir's folder
        tracking/; nothing leaves this machine unless WANDB_MODE or MLFLOW_TRACKING_URI says so.
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
    track: str = ""

    def __post_init__(self):
        require_count("steps", self.steps, 0, "count epochs")
        require(self.steps or self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require_seed(self.seed)
        name = self.optimizer.name
        require(name == "adamw", "optimizer.name", name, "fine-tuning has adamw only")
        require(self.log_every_steps >= 1, "log_every_steps", self.log_every_steps, "at least 1")
        check_tracker(self.track)

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
