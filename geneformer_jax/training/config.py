"""The configuration of a pretraining run: typed, checked, filled from an ml_collections file."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from geneformer_jax.batches.config import DataConfig, MaskingConfig, ViewConfig
from geneformer_jax.common.config import (
    fill,
    keys_of,
    one_of,
    require,
    require_count,
    require_seed,
)
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import EncoderConfig, MeshConfig, RuntimeConfig, preset

if TYPE_CHECKING:
    from ml_collections import ConfigDict

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("linear", "cosine", "constant", "stable_decay")
TRACKERS = ("wandb", "mlflow")
INITIAL_GENES = ("random", "components")


def check_tracker(name: str) -> None:
    """Raises InputError unless `config.track` names a tracker, or none."""
    if name:
        one_of("track", name, TRACKERS)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save checkpoints, and which to keep.

    Attributes:
      every_steps: steps between checkpoints; there is always one at the end.
      every_minutes: minutes after which there is a checkpoint too, checked whenever a line of
        metrics is written; 0 for none.
      keep: number of newest checkpoints to keep.
      keep_every_steps: checkpoints at multiples of this are never removed; 0 for none.
    """

    every_steps: int = 1_000
    every_minutes: float = 30.0
    keep: int = 3
    keep_every_steps: int = 0

    def __post_init__(self):
        for name in ("every_minutes", "keep_every_steps"):
            value = getattr(self, name)
            require(value >= 0, f"checkpoint.{name}", value, "it must not be negative")
        for name in ("every_steps", "keep"):
            require(
                getattr(self, name) >= 1, f"checkpoint.{name}", getattr(self, name), "at least 1"
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation.

    Attributes:
      held_out_cells: cells never trained on, drawn by the run's seed; 0 switches evaluation off.
      every_steps: steps between evaluations; there is always one at the end.
    """

    held_out_cells: int = 1_000
    every_steps: int = 1_000

    def __post_init__(self):
        require(
            self.held_out_cells >= 0, "evaluation.held_out_cells", self.held_out_cells, "0 or more"
        )
        require(self.every_steps >= 1, "evaluation.every_steps", self.every_steps, "at least 1")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate schedule; AdamW in the original's terms by default.

    Attributes:
      name: adamw; or muon, which orthogonalises the updates of the layers' matrices (Jordan et al.,
        2024) and leaves embeddings, biases and norms to AdamW. Its updates are scaled to the size
        that AdamW's have (Liu et al., 2025), so that both want about the same learning rate.
      learning_rate: peak.
      schedule: after warmup: linear or half-cosine to 0; constant; or stable_decay, which is
        constant and at last linear to 0.
      decay_ratio: steps of that last part, as a fraction of all.
      warmup_steps: steps of linear warmup from 0.
      warmup_ratio: warmup as a fraction of all steps, rounded up; used where warmup_steps is 0.
      weight_decay: decoupled; not applied to biases and layer norms.
      b1, b2, eps: of Adam.
      clip_norm: largest global gradient norm; 0 switches clipping off.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "linear"
    decay_ratio: float = 0.2
    warmup_steps: int = 10_000
    warmup_ratio: float = 0.0
    weight_decay: float = 0.001
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0

    def __post_init__(self):
        one_of("optimizer.name", self.name, OPTIMIZERS)
        one_of("optimizer.schedule", self.schedule, SCHEDULES)
        require(0 < self.decay_ratio <= 1, "optimizer.decay_ratio", self.decay_ratio, "in (0, 1]")
        require(
            self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "it must be > 0"
        )
        require(
            0 <= self.warmup_ratio < 1, "optimizer.warmup_ratio", self.warmup_ratio, "in [0, 1)"
        )
        require_count("optimizer.warmup_steps", self.warmup_steps, 0)
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            require(value >= 0, f"optimizer.{name}", value, "it must not be negative")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is learnt beside masked genes: by default nothing, as in the original.

    Attributes:
      contrastive: weight of a second loss, in nats a cell, beside that of masked genes: a view of
        each cell, a random part of its genes, is embedded too, and its mean is to be nearer to that
        of the cell than to those of the batch's other cells (InfoNCE); 0 for none.
      temperature: by which cosines are divided.
      hidden_layer: whose genes' mean is compared: 0 the last, -1 the one below.
      views: how many of a cell's genes a view has.
    """

    contrastive: float = 0.0
    temperature: float = 0.1
    hidden_layer: int = -1
    views: ViewConfig = ViewConfig()

    def __post_init__(self):
        # Beyond these the squares in the norm of gradients are no float32 any more.
        name = "objective.contrastive"
        require(0 <= self.contrastive <= 1e6, name, self.contrastive, "from 0 (off) to 1e6")
        name, rule = "objective.temperature", "from 1e-6 to 1e6, such as 0.1"
        require(1e-6 <= self.temperature <= 1e6, name, self.temperature, rule)
        require(self.hidden_layer <= 0, "objective.hidden_layer", self.hidden_layer, "0 or below")


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Which steps to profile with JAX's profiler, into the run's folder `profile`.

    Attributes:
      first_step: the first of them, counted from 1.
      steps: how many; 0 switches profiling off.
    """

    first_step: int = 10
    steps: int = 0

    def __post_init__(self):
        require(self.first_step >= 1, "profile.first_step", self.first_step, "at least 1")
        require(self.steps >= 0, "profile.steps", self.steps, "0 (off) or more")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """A whole pretraining run.

    Attributes:
      model: fields of EncoderConfig. vocabulary_size 0 takes the size of the store's vocabulary.
      initial: checkpoint, workdir of another run, folder that transformers saved or "demo-blood",
        with whose weights this one begins (continual pretraining); empty to draw them.
        A checkpoint in the run's own workdir goes before it.
      initial_genes: embeddings of genes to begin with where weights are drawn: random, as in the
        original; or components: principal components of the genes' ranks in 10,000 of the training
        cells, so that genes which rank high in the same cells begin alike.
      epochs: passes over the training cells, used where steps is 0.
      steps: optimizer steps.
      seed: of initial weights, split, shuffle, masks and dropout.
      log_every_steps: steps between lines in metrics.jsonl.
      track: "wandb" or "mlflow": also keep the metrics for that tracker, in the workdir's folder
        tracking/; nothing leaves this machine unless WANDB_MODE or MLFLOW_TRACKING_URI says so.
    """

    model: dict[str, Any] = dataclasses.field(metadata=keys_of(EncoderConfig))
    initial: str = ""
    initial_genes: str = "random"
    data: DataConfig = DataConfig()
    masking: MaskingConfig = MaskingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
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
    track: str = ""

    def __post_init__(self):
        one_of("initial_genes", self.initial_genes, INITIAL_GENES)
        if self.initial and self.initial_genes != "random":
            raise InputError(
                f"`config.initial` {self.initial} has embeddings of genes, but "
                f"`config.initial_genes` asks for {self.initial_genes}; leave one of them out"
            )
        require_count("steps", self.steps, 0, "count epochs")
        require(self.steps or self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require_seed(self.seed)
        require(self.log_every_steps >= 1, "log_every_steps", self.log_every_steps, "at least 1")
        check_tracker(self.track)

    @property
    def masks_on_device(self) -> bool:
        """Whether steps mask their batches, as they must to draw views of the unmasked cells."""
        return self.masking.on_device or self.objective.contrastive > 0

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


def pretrain_config(model: str | EncoderConfig, vocabulary_size: int | None = None) -> "ConfigDict":
    """Returns every default of a run as a ConfigDict for a configuration file to change.

    Args:
      model: a preset's name or a shape.
      vocabulary_size: replaces the shape's; 0 takes the store's.
    """
    # Imported where a file is to change values: a typed configuration does without it.
    from ml_collections import ConfigDict

    shape = preset(model) if isinstance(model, str) else model
    fields = dataclasses.asdict(shape)
    if vocabulary_size is not None:
        fields["vocabulary_size"] = vocabulary_size
    return ConfigDict(dataclasses.asdict(PretrainConfig(model=fields)))


def typed_config(config: "ConfigDict | Mapping[str, Any]") -> PretrainConfig:
    """Turns a ConfigDict (or a dict read back from JSON) into checked dataclasses.

    Raises:
      InputError: an unknown key, or a value that cannot be.
    """
    return fill(PretrainConfig, config)
