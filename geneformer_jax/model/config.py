"""Configurations of a model: its shape, the published sizes, and how and where it is computed.

Shape suffixes used in numeric code, here and everywhere:
  B batch (cells), T tokens of a padded cell, D model width, N attention heads, H head size,
  F feed-forward width, V vocabulary, L layers, M masked positions, C classes, G genes,
  P perturbations. `tokens_BT` is an array of shape [B, T].
"""

import dataclasses
from typing import Any

from geneformer_jax.common.config import one_of, require
from geneformer_jax.common.errors import InputError, did_you_mean

PRECISIONS = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8", "nf4")
REMATS = ("none", "full", "dots")
POOLINGS = ("first", "mean", "attention")
INITIAL_HEADS = RANDOM, PROBE = "random", "probe"
TARGETS = ("query", "key", "value", "attention_output", "up", "down")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Hyper-parameters of the encoder, named as in the field; see `preset` for sizes.

    Attributes:
      vocabulary_size: V, tokens including the special ones.
      layers: L.
      width: D, the model's hidden size.
      heads: N; the head size H is width / heads, 64 in every published model.
      feed_forward: F.
      positions: longest cell in tokens.
      dropout: rate after embeddings, attention output and feed-forward.
      attention_dropout: rate on the attention weights.
      initializer_range: standard deviation of initial weights.
      layer_norm_eps: added to the variance in layer norms.
      pad_token: id of `<pad>`; its embedding starts at zero, as in BERT.
      token_types: rows of the token type table, of which only row 0 is used, as in the original.
    """

    vocabulary_size: int
    layers: int
    width: int
    heads: int
    feed_forward: int
    positions: int
    dropout: float = 0.02
    attention_dropout: float = 0.02
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token: int = 0
    token_types: int = 2

    def __post_init__(self):
        for name in ("vocabulary_size", "layers", "width", "heads", "feed_forward", "positions"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise InputError(
                f"model.width {self.width} is not divisible by model.heads {self.heads}; "
                f"choose a multiple (published models have width = 64 x heads)"
            )
        if not 0 <= self.pad_token < self.vocabulary_size:
            raise InputError(
                f"model.pad_token is {self.pad_token}; it must be one of the "
                f"{self.vocabulary_size:,} tokens"
            )
        for name in ("dropout", "attention_dropout", "layer_norm_eps"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be in [0, 1)")

    @property
    def head_size(self) -> int:
        """H, the width of one attention head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Number of weights with the masked-gene head, whose decoder is tied to the embedding."""
        D, F = self.width, self.feed_forward
        norm = 2 * D
        embeddings = (self.vocabulary_size + self.positions + self.token_types) * D + norm
        block = 4 * (D * D + D) + norm + (D * F + F) + (F * D + D) + norm
        head = D * D + D + norm + self.vocabulary_size
        return embeddings + self.layers * block + head


_SHAPES = {
    # name: vocabulary, layers, width, heads, feed-forward, positions, dropout
    "v1_10m": (25_426, 6, 256, 4, 512, 2048, 0.02),
    "v1_40m": (25_426, 12, 512, 8, 1024, 2048, 0.02),
    "v2_38m": (20_275, 12, 512, 8, 1024, 4096, 0.02),
    "v2_151m": (20_275, 20, 896, 14, 1792, 4096, 0.02),
    "v2_104m": (20_275, 12, 768, 12, 3072, 4096, 0.1),
    "v2_316m": (20_275, 18, 1152, 18, 4608, 4096, 0.1),
}
PRESETS = tuple(_SHAPES)


def preset(name: str, **changes: Any) -> EncoderConfig:
    """Returns the configuration of a published model, with some fields changed.

    Sizes are those of the released `config.json` files; parameter counts match their weights.

    Raises:
      InputError: there is no such preset.
    """
    if name not in _SHAPES:
        known = ", ".join(PRESETS)
        raise InputError(f'no model preset "{name}"{did_you_mean(name, PRESETS)}; known: {known}')
    vocabulary, layers, width, heads, feed_forward, positions, dropout = _SHAPES[name]
    config = EncoderConfig(
        vocabulary_size=vocabulary,
        layers=layers,
        width=width,
        heads=heads,
        feed_forward=feed_forward,
        positions=positions,
        dropout=dropout,
        attention_dropout=dropout,
    )
    return dataclasses.replace(config, **changes)


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
    """How to compute.

    Attributes:
      precision: float32, bfloat16 or float16 (with a loss scale).
      attention: an implementation; auto chooses for the device.
      remat: what is computed again in the backward pass to save memory: none, dots or full.
      micro_batches: parts into which each batch is cut to save memory (gradient accumulation).
      optimizer_on_host: keep the optimizer's state in host memory between steps.
    """

    precision: str = "float32"
    attention: str = "auto"
    remat: str = "none"
    micro_batches: int = 1
    optimizer_on_host: bool = False

    def __post_init__(self):
        require(self.micro_batches >= 1, "runtime.micro_batches", self.micro_batches, "at least 1")
        one_of("runtime.precision", self.precision, PRECISIONS)
        one_of("runtime.remat", self.remat, REMATS)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis.

    Attributes:
      data: copies of the model; 0 takes all devices that the other axes leave, another number
        only those.
      fsdp: devices over which weights and optimizer state are sharded (and batches too).
      tensor: devices over which heads and feed-forward are split.
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        require(self.data >= 0, "mesh.data", self.data, "0 (all devices left) or more")
        for name in ("fsdp", "tensor"):
            require(getattr(self, name) >= 1, f"mesh.{name}", getattr(self, name), "at least 1")


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """What a configuration states of a head; see HeadConfig.

    Attributes:
      initial: weights to begin with: random, as in the original; or probe, with pooling mean or
        first: those of a logistic regression on what is pooled of the training cells, so that the
        network begins where its embeddings as they are take it.
      pooling: what stands for a cell: first (as the original), mean or attention.
      extra_layer: one more transformer layer below the head.
      dropout: rate before the last linear layer; -1 takes the encoder's, as the original.
    """

    initial: str = "random"
    pooling: str = "first"
    extra_layer: bool = False
    dropout: float = -1.0

    def __post_init__(self):
        one_of("head.initial", self.initial, INITIAL_HEADS)
        one_of("head.pooling", self.pooling, POOLINGS)
        valid = self.dropout == -1 or 0 <= self.dropout < 1
        require(valid, "head.dropout", self.dropout, "in [0, 1), or -1 (that of the encoder)")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which kernels are adapted, and how much.

    Attributes:
      rank: columns of A.
      alpha: the product is multiplied by alpha / rank.
      targets: names of projections, of TARGETS.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))
        for target in self.targets:
            if target not in TARGETS:
                hint = did_you_mean(target, TARGETS)
                raise InputError(f'no projection "{target}"{hint}; use {", ".join(TARGETS)}')
        if self.rank < 1 or self.alpha <= 0 or not self.targets:
            raise InputError(
                f"LoRA of rank {self.rank}, alpha {self.alpha} and targets "
                f"{', '.join(self.targets) or 'none'} adapts nothing; all three must be above 0"
            )
