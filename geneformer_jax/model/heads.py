"""Heads on top of the encoder that classify cells or genes, or predict numbers for them.

The original's two are the default: a tanh pooler on position 0, dropout and a linear layer for
cells; dropout and a linear layer for genes. Options: cells pooled by a mean or by learned
attention, one more transformer layer below the head, regression, and several tasks at once, whose
outputs stand side by side in one linear layer.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.model.attention.products import FLOAT32_PRODUCTS, precision_of_products
from geneformer_jax.model.config import POOLINGS, EncoderConfig
from geneformer_jax.model.encoder import Block
from geneformer_jax.model.precision import Precision

CELLS, GENES = "cell_classifier", "gene_classifier"
KINDS = (CELLS, GENES)
_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class HeadTask:
    """One output of a head.

    Attributes:
      name: such as the obs column that it was learned from.
      labels: names of the C classes, in the order of the logits; for a regression its one name.
      weight: in the loss of several tasks; weights are scaled to sum to 1.
      regression: a number instead of a class.
      center, scale: of the numbers that were learned: the output is (number - center) / scale.
    """

    name: str
    labels: tuple[str, ...]
    weight: float = 1.0
    regression: bool = False
    center: float = 0.0
    scale: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.regression and len(self.labels) != 1:
            count = len(self.labels)
            raise InputError(f'the regression "{self.name}" has {count} outputs; it must be 1')
        if not (0 < self.weight < math.inf and 0 < self.scale < math.inf):
            raise InputError(
                f'task "{self.name}" has weight {self.weight} and scale {self.scale}; both must be '
                "above 0, and finite"
            )


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The outputs of a head, and how they are computed.

    Attributes:
      kind: "cell_classifier" or "gene_classifier"; also its name among the weights.
      labels: names of all outputs, in the order of the logits: the C classes of the only task, or
        those of one task after another.
      dropout: rate on what the last linear layer sees.
      pooling: what stands for a cell: "first" (the original's position 0), "mean" over all its
        tokens, or "attention" (a learned weighting of them).
      extra_layer: one more transformer layer between encoder and head.
      tasks: what the outputs are; by default one classification.
    """

    kind: str
    labels: tuple[str, ...]
    dropout: float
    pooling: str = "first"
    extra_layer: bool = False
    tasks: tuple[HeadTask, ...] = ()

    def __post_init__(self):
        # Read back from JSON, tuples are lists and tasks are dicts.
        tasks = (each if isinstance(each, HeadTask) else HeadTask(**each) for each in self.tasks)
        object.__setattr__(self, "tasks", tuple(tasks))
        labels = self.labels
        object.__setattr__(self, "labels", tuple(labels))
        for name, value, known in (
            ("head", self.kind, KINDS),
            ("pooling", self.pooling, POOLINGS),
        ):
            if value not in known:
                hint = did_you_mean(value, known)
                raise InputError(f'no {name} "{value}"{hint}; use {", ".join(known)}')
        if isinstance(labels, str) or not all(isinstance(each, str) for each in self.labels):
            raise InputError(f"the head's labels are {labels!r}; give a list of names")
        if not self.labels:
            raise InputError(f"a {self.kind} without labels predicts nothing; give two or more")
        if self.tasks and self.labels != sum((task.labels for task in self.tasks), ()):
            raise InputError(f"the outputs {self.labels} are not those of the tasks {self.tasks}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"the head's dropout is {self.dropout}; it must be in [0, 1)")

    @property
    def outputs(self) -> tuple[HeadTask, ...]:
        """The tasks, the only one too."""
        return self.tasks or (HeadTask("label", self.labels),)

    @property
    def as_original(self) -> bool:
        """Whether BERT has a class for it: one classification, and no option."""
        return not (self.tasks or self.extra_layer or self.pooling != "first")


def head_of_tasks(kind: str, tasks: tuple[HeadTask, ...], dropout: float, **options) -> HeadConfig:
    """Returns the head of some tasks; a single classification is the plain head of its labels."""
    labels = sum((task.labels for task in tasks), ())
    if len(tasks) == 1 and not tasks[0].regression:
        tasks = ()
    return HeadConfig(kind, labels, dropout, tasks=tasks, **options)


def _linear(config: EncoderConfig, outputs: int, dtype: Any, rngs: nnx.Rngs, **options):
    init = nnx.initializers.normal(config.initializer_range)
    options |= {"dtype": dtype, "precision": precision_of_products(dtype)}
    return nnx.Linear(config.width, outputs, kernel_init=init, rngs=rngs, **options)


class Head(nnx.Module):
    """The common part of both kinds: perhaps one more layer, dropout, and a linear layer."""

    def __init__(self, config: EncoderConfig, head: HeadConfig, dtype: Any, rngs: nnx.Rngs):
        if head.extra_layer:
            self.extra_layer = Block(config, dtype, rngs)
        self.pooling = head.pooling
        self._build(config, dtype, rngs)
        self.dropout = nnx.Dropout(head.dropout)
        self.classifier = _linear(
            config, len(head.labels), dtype, rngs, preferred_element_type=jnp.float32
        )

    def _build(self, config: EncoderConfig, dtype: Any, rngs: nnx.Rngs) -> None:
        """Builds what only this kind has."""

    def select(
        self, hidden_BTD: jax.Array, lengths_B: jax.Array, bias_BT: jax.Array | None = None
    ) -> jax.Array:
        """Returns what the linear layer is to see: every hidden state [B, T, D]."""
        return hidden_BTD

    def __call__(
        self,
        hidden_BTD: jax.Array,
        lengths_B: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
        attention: str = "xla",
        bias_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Returns float32 logits [B, C], or [B, T, C] for genes.

        Args:
          hidden_BTD: the encoder's last hidden state.
          lengths_B: real tokens of each row; None: all of them.
          dropout_key: a key switches dropout on.
          attention: implementation of the extra layer's attention.
          bias_BT: float32, how much more each token counts where a cell is pooled, as the logarithm
            of a weight; 0, for all, by default.
        """
        if lengths_B is None:
            lengths_B = jnp.full(len(hidden_BTD), hidden_BTD.shape[1], jnp.int32)
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        if hasattr(self, "extra_layer"):
            hidden_BTD = self.extra_layer(hidden_BTD, lengths_B, None, attention, keys[1])
        selected = self.select(hidden_BTD, lengths_B, bias_BT)
        if keys[0] is not None:
            selected = self.dropout(selected, deterministic=False, rngs=keys[0])
        return self.classifier(selected)


class CellHead(Head):
    """Classifies cells: pooled, then a tanh layer, as the original does on position 0.

    Position 0 is `<cls>` in a V2 cell; a V1 cell has none, there it is the top-ranked gene.
    """

    def _build(self, config: EncoderConfig, dtype: Any, rngs: nnx.Rngs) -> None:
        self.pooler = _linear(config, config.width, dtype, rngs)
        if self.pooling == "attention":
            float32 = {"use_bias": False, "preferred_element_type": jnp.float32}
            self.scores = _linear(config, 1, dtype, rngs, **float32)

    def select(
        self, hidden_BTD: jax.Array, lengths_B: jax.Array, bias_BT: jax.Array | None = None
    ) -> jax.Array:
        """Returns what stands for each cell [B, D]."""
        return jnp.tanh(self.pooler(self.pool(hidden_BTD, lengths_B, bias_BT)))

    def pool(
        self, hidden_BTD: jax.Array, lengths_B: jax.Array, bias_BT: jax.Array | None = None
    ) -> jax.Array:
        """Returns what the tanh layer is to see of each cell [B, D]; see `__call__`."""
        if self.pooling == "first":
            return _first(hidden_BTD, bias_BT)
        scores_BT = jnp.zeros(hidden_BTD.shape[:2]) if bias_BT is None else bias_BT
        if self.pooling == "attention":
            scores_BT = scores_BT + self.scores(hidden_BTD)[..., 0]
        real_BT = jnp.arange(hidden_BTD.shape[1]) < lengths_B[:, None]
        weights_BT = jax.nn.softmax(jnp.where(real_BT, scores_BT, _MASKED), axis=-1)
        pooled_BD = jnp.einsum(
            "bt,btd->bd",
            weights_BT,
            hidden_BTD,
            preferred_element_type=jnp.float32,
            precision=FLOAT32_PRODUCTS,
        )
        return pooled_BD.astype(hidden_BTD.dtype)


def _first(hidden_BTD: jax.Array, bias_BT: jax.Array | None) -> jax.Array:
    """Returns the first hidden state; what it lacks in weight comes from the second."""
    if bias_BT is None:
        return hidden_BTD[:, 0]
    first_BD, second_BD = hidden_BTD[:, 0], hidden_BTD[:, 1]
    return first_BD + bias_BT[:, :1].astype(first_BD.dtype) * (first_BD - second_BD)


class GeneHead(Head):
    """Classifies each gene of a cell by its own hidden state, as the original does."""


_HEADS = {CELLS: CellHead, GENES: GeneHead}


def init_head(config: EncoderConfig, head: HeadConfig, key: jax.Array) -> dict[str, Any]:
    """Draws a head's initial weights as BERT does: normal(0, initializer_range), zero biases."""
    built = _HEADS[head.kind](config, head, jnp.float32, nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(built, nnx.Param))


def head_module(
    config: EncoderConfig, head: HeadConfig, weights: dict[str, Any], precision: Precision
) -> CellHead | GeneHead:
    """Returns the head holding `weights`, which are `params[head.kind]` of a model."""
    build = functools.partial(_HEADS[head.kind], config, head, precision.compute)
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)
