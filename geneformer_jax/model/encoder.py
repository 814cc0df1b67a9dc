"""The encoder: BERT in the original's form, over the ranked genes of a cell.

Post-layer-norm, ReLU, learned positions, token type always 0. Modules are Flax NNX and serve to
define and initialise; everything else works on `params`, a plain nested dict of float32 arrays in
which the layers are stacked along a leading axis L and scanned; kernels and tables may be quantised
(see quantization.py), and are floats only where a layer or a look-up takes its own rows:

  embeddings/{word,position,token_type}/embedding, embeddings/norm/{scale,bias}
  blocks/{query,key,value,attention_output,up,down}/{kernel,bias}
  blocks/{attention_norm,output_norm}/{scale,bias}
  masked_gene_head/..., or a classifier's cell_classifier/... or gene_classifier/... (see heads.py)
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from geneformer_jax.common.errors import InputError
from geneformer_jax.model.attention.dispatch import attend
from geneformer_jax.model.attention.dropout import drop
from geneformer_jax.model.attention.products import einsum_f32, precision_of_products
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.precision import Precision
from geneformer_jax.model.quantization import QuantizedWeight, in_float
from geneformer_jax.model.runtime import REMAT_POLICIES, Runtime

Params = dict[str, Any]


def _normal(config: EncoderConfig) -> nnx.Initializer:
    return nnx.initializers.normal(config.initializer_range)


class Norm(nnx.LayerNorm):
    """A layer norm that keeps nothing but its input for the backward pass.

    Else its float32 statistics and differences would be kept, two arrays of twice the size of an
    input in half precision: 40 % of what a training step of V1-10M kept.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns normalised states, shaped as they were."""
        return jax.checkpoint(super().__call__, prevent_cse=False)(x)


def _norm(config: EncoderConfig, dtype: Any, rngs: nnx.Rngs) -> Norm:
    return Norm(
        config.width,
        epsilon=config.layer_norm_eps,
        dtype=dtype,
        use_fast_variance=False,
        rngs=rngs,
    )


class Table(nnx.Embed):
    """A table of embeddings; of a quantised one only the rows that are looked up become floats."""

    def __call__(self, numbers: jax.Array) -> jax.Array:
        """Returns the rows [..., D] of numbers [...]."""
        table = self.embedding.get_value()
        if isinstance(table, QuantizedWeight):
            return table[numbers].astype(self.dtype)
        return super().__call__(numbers)

    def whole(self) -> jax.Array:
        """Returns all rows in float, [rows, D]."""
        table = self.embedding.get_value()
        return table[:] if isinstance(table, QuantizedWeight) else table


class Embeddings(nnx.Module):
    """Sum of gene, rank position and token type embeddings, normalised."""

    def __init__(self, config: EncoderConfig, dtype: Any, rngs: nnx.Rngs):
        def table(rows: int) -> Table:
            init = _normal(config)
            return Table(rows, config.width, dtype=dtype, embedding_init=init, rngs=rngs)

        self.word = table(config.vocabulary_size)
        self.position = table(config.positions)
        self.token_type = table(config.token_types)
        self.norm = _norm(config, dtype, rngs)
        self.dropout = config.dropout
        # BERT starts the pad row at zero.
        self.word.embedding[...] = self.word.embedding[...].at[config.pad_token].set(0.0)

    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, dropout_key: jax.Array | None
    ) -> jax.Array:
        """Returns embeddings [B, T, D] of token ids [B, T]; a key switches dropout on."""
        x_BTD = self.at_places(tokens_BT, self.position(positions_BT))
        return drop(x_BTD, self.dropout, dropout_key)

    def at_places(self, tokens_BT: jax.Array, places_BTD: jax.Array) -> jax.Array:
        """Returns embeddings [B, T, D] of tokens, given those of their positions."""
        x_BTD = self.word(tokens_BT) + places_BTD
        return self.norm(x_BTD + self.token_type(jnp.zeros((), jnp.int32)))


class Block(nnx.Module):
    """One transformer layer: attention, then feed-forward, each added and then normalised."""

    def __init__(self, config: EncoderConfig, dtype: Any, rngs: nnx.Rngs):
        D, N, H = config.width, config.heads, config.head_size
        kernel = {"kernel_init": _normal(config), "dtype": dtype, "rngs": rngs}
        kernel["precision"] = precision_of_products(dtype)
        self.query = nnx.LinearGeneral(D, (N, H), **kernel)
        self.key = nnx.LinearGeneral(D, (N, H), **kernel)
        self.value = nnx.LinearGeneral(D, (N, H), **kernel)
        self.attention_output = nnx.LinearGeneral((N, H), D, axis=(-2, -1), **kernel)
        self.attention_norm = _norm(config, dtype, rngs)
        self.up = nnx.Linear(D, config.feed_forward, **kernel)
        self.down = nnx.Linear(config.feed_forward, D, **kernel)
        self.output_norm = _norm(config, dtype, rngs)
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout

    def __call__(
        self,
        x_BTD: jax.Array,
        lengths_B: jax.Array | None,
        segments_BT: jax.Array | None,
        attention: str,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        """Returns the block's hidden states [B, T, D]; arguments as in `encode`."""
        keys = (None,) * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        attended_BTNH = attend(
            *self.project(x_BTD),
            lengths_B,
            segments_BT=segments_BT,
            implementation=attention,
            dropout_rate=0.0 if dropout_key is None else self.attention_dropout,
            dropout_key=keys[0],
        )
        return self.finish(x_BTD, attended_BTNH, *keys[1:])

    def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries, keys and values, [B, T, N, H] each."""
        return self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)

    def finish(
        self,
        x_BTD: jax.Array,
        attended_BTNH: jax.Array,
        attention_key: jax.Array | None = None,
        output_key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the block's hidden states, given what its heads attended; keys are of dropout."""
        attended_BTD = drop(self.attention_output(attended_BTNH), self.dropout, attention_key)
        x_BTD = self.attention_norm(x_BTD + attended_BTD)
        forward_BTD = self.down(jax.nn.relu(self.up(x_BTD)))
        return self.output_norm(x_BTD + drop(forward_BTD, self.dropout, output_key))


class Encoder(nnx.Module):
    """Embeddings, stacked blocks and the masked-gene head: all weights of a pretrained model."""

    def __init__(self, config: EncoderConfig, dtype: Any, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, dtype, rngs)

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(config, dtype, rngs)

        self.blocks = stacked(rngs)
        self.masked_gene_head = MaskedGeneHead(config, dtype, rngs)


@functools.lru_cache(maxsize=32)
def _definition(config: EncoderConfig, dtype: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """Graph and abstract weights of the encoder; builds no arrays."""
    abstract = nnx.eval_shape(lambda: Encoder(config, dtype, nnx.Rngs(0)))
    return nnx.split(abstract)


def module(config: EncoderConfig, params: Params, precision: Precision) -> Encoder:
    """Returns the embeddings and the masked-gene head of `params`, in the given precision.

    A classifier's weights have a head of another kind (see heads.py), which is left out here. The
    blocks are those of `stacked_blocks`.
    """
    held = {name: params[name] for name in ("embeddings", "masked_gene_head") if name in params}
    return _filled(*_definition(config, precision.compute), held)


def _filled(graph: nnx.GraphDef, abstract: nnx.State, weights: Params) -> Any:
    state = jax.tree.map(lambda leaf: leaf, abstract)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)


@functools.lru_cache(maxsize=32)
def _block_definition(config: EncoderConfig, dtype: Any) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Block(config, dtype, nnx.Rngs(0))))


def stacked_blocks(
    config: EncoderConfig, params: Params, precision: Precision
) -> tuple[Callable[[Params], Block], Params]:
    """Returns (function that makes a block of one layer's weights, weights of all layers).

    The latter are stacked along the first axis of each array, as a scan wants them.
    """
    definition = _block_definition(config, precision.compute)
    return lambda weights: _filled(*definition, in_float(weights)), params["blocks"]


def init_params(config: EncoderConfig, key: jax.Array) -> Params:
    """Draws initial weights as BERT does: normal(0, initializer_range), zero biases, unit norms."""
    encoder = Encoder(config, jnp.float32, nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(encoder, nnx.Param))


def abstract_params(config: EncoderConfig) -> Params:
    """Returns `init_params` as shapes and types only."""
    return jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))


def encode(
    config: EncoderConfig,
    params: Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array | None,
    *,
    layers: int | None = None,
    runtime: Runtime | None = None,
    dropout_key: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    constant_layers: int = 0,
) -> jax.Array:
    """Runs the embeddings and the first `layers` blocks.

    Args:
      config: shape of the model.
      params: weights, as `init_params` returns them.
      tokens_BT: token ids, padded on the right.
      lengths_B: number of real tokens in each row; None where `segments_BT` is given.
      layers: blocks to run, all by default; 0 gives the embedding output. Nothing above is
        computed.
      runtime: how to compute.
      dropout_key: a key switches dropout on; None is evaluation.
      positions_BT: rank positions, 0..T-1 by default.
      segments_BT: for rows that hold several cells, 1, 2, ... for the cell a token belongs to and 0
        for padding; attention stays within a cell.
      constant_layers: the lowest blocks whose weights take no gradient; none is computed.

    Returns:
      Hidden states [B, T, D] in the compute type. Rows at or beyond a cell's length are meaningless
      but finite.
    """
    inputs = (tokens_BT, lengths_B, positions_BT, segments_BT)
    body, x_BTD, scanned = _prepare(
        config, params, *inputs, layers, runtime or Runtime(), dropout_key
    )
    if not constant_layers:
        return _run(body, x_BTD, scanned)
    lower, upper = _parted(scanned, constant_layers)
    x_BTD = _run(body, x_BTD, (jax.lax.stop_gradient(lower[0]), lower[1]))
    return _run(body, x_BTD, upper)


def encode_twice(
    config: EncoderConfig,
    params: Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array | None,
    *,
    layers: int,
    runtime: Runtime | None = None,
    dropout_key: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Like `encode`, but returns the hidden states above `layers` blocks and those above all.

    The first are what `encode` returns for so many layers and the same dropout key.
    """
    inputs = (tokens_BT, lengths_B, positions_BT, segments_BT)
    body, x_BTD, scanned = _prepare(
        config, params, *inputs, None, runtime or Runtime(), dropout_key
    )
    lower, upper = _parted(scanned, layers)
    below_BTD = _run(body, x_BTD, lower)
    return below_BTD, _run(body, below_BTD, upper)


def _run(body: Callable[[jax.Array, Any], jax.Array], x_BTD: jax.Array, scanned: Any) -> jax.Array:
    return jax.lax.scan(lambda x, s: (body(x, s), None), x_BTD, scanned)[0]


def _parted(scanned: Any, layers: int) -> tuple[Any, Any]:
    """Returns what to scan over in the lowest layers, and in those above them."""
    return tuple(
        jax.tree.map(operator.itemgetter(part), scanned)
        for part in (slice(layers), slice(layers, None))
    )


def encode_all_layers(
    config: EncoderConfig,
    params: Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    *,
    layers: int | None = None,
    runtime: Runtime | None = None,
) -> jax.Array:
    """Like `encode`, but returns every hidden state [layers + 1, B, T, D], embeddings first."""
    inputs = (tokens_BT, lengths_B, None, None)
    body, x_BTD, scanned = _prepare(config, params, *inputs, layers, runtime or Runtime(), None)

    def keep(x: jax.Array, s: Any) -> tuple[jax.Array, jax.Array]:
        x = body(x, s)
        return x, x

    _, hidden_LBTD = jax.lax.scan(keep, x_BTD, scanned)
    return jnp.concatenate([x_BTD[None], hidden_LBTD])


def _prepare(
    config: EncoderConfig,
    params: Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array | None,
    positions_BT: jax.Array | None,
    segments_BT: jax.Array | None,
    layers: int | None,
    runtime: Runtime,
    dropout_key: jax.Array | None,
) -> tuple[Callable[[jax.Array, Any], jax.Array], jax.Array, Any]:
    """Returns (function of one block, embedding output, what to scan over)."""
    T = tokens_BT.shape[1]
    layers = config.layers if layers is None else layers
    if not 0 <= layers <= config.layers:
        raise InputError(f"layer {layers} is not one of the model's layers 0 to {config.layers}")
    if T > config.positions:
        raise InputError(
            f"cells padded to {T} tokens do not fit a model of {config.positions} positions; "
            f"tokenize with `max_length`={config.positions}"
        )
    build, blocks = stacked_blocks(config, params, runtime.precision)
    keys = None if dropout_key is None else jax.random.split(dropout_key, config.layers + 1)
    if positions_BT is None:
        positions_BT = jnp.arange(T, dtype=jnp.int32)[None]

    def block(x_BTD: jax.Array, scanned: Any) -> jax.Array:
        weights, key = scanned
        x_BTD = build(weights)(x_BTD, lengths_B, segments_BT, runtime.attention, key)
        return runtime.constrain(x_BTD)

    if runtime.remat != "none":
        block = jax.checkpoint(block, policy=REMAT_POLICIES[runtime.remat], prevent_cse=False)
    embeddings = module(config, params, runtime.precision).embeddings
    embedded_BTD = embeddings(tokens_BT, positions_BT, None if keys is None else keys[-1])
    first = jax.tree.map(lambda leaf: leaf[:layers], (blocks, None if keys is None else keys[:-1]))
    return block, runtime.constrain(embedded_BTD), first


def masked_gene_logits(
    config: EncoderConfig,
    params: Params,
    hidden_BTD: jax.Array,
    positions_BM: jax.Array,
    precision: Precision,
) -> jax.Array:
    """Returns float32 vocabulary logits [B, M, V] at the given positions of the last hidden state.

    Only these positions meet the vocabulary: for V1-10M the full head is 41 % of all FLOPs. Where
    the tables have more rows than the vocabulary has tokens (see training.mesh.vocabulary_rows), V
    is theirs, and no probability falls on the rows beyond.
    """
    hidden_BMD = jnp.take_along_axis(hidden_BTD, positions_BM[..., None], axis=1)
    encoder = module(config, params, precision)
    logits_BMV = encoder.masked_gene_head(hidden_BMD, encoder.embeddings.word.whole())
    rows = logits_BMV.shape[-1]
    if rows == config.vocabulary_size:
        return logits_BMV
    return jnp.where(jnp.arange(rows) < config.vocabulary_size, logits_BMV, -jnp.inf)


class MaskedGeneHead(nnx.Module):
    """Predicts masked genes as BERT does: dense, ReLU, norm, then the tied embedding and a bias."""

    def __init__(self, config: EncoderConfig, dtype: Any, rngs: nnx.Rngs):
        self.transform = nnx.Linear(
            config.width,
            config.width,
            kernel_init=nnx.initializers.normal(config.initializer_range),
            dtype=dtype,
            precision=precision_of_products(dtype),
            rngs=rngs,
        )
        self.norm = _norm(config, dtype, rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocabulary_size))

    def __call__(self, hidden_BMD: jax.Array, embedding_VD: jax.Array) -> jax.Array:
        """Returns float32 logits [B, M, V] for hidden states [B, M, D]."""
        x_BMD = self.norm(jax.nn.relu(self.transform(hidden_BMD)))
        logits_BMV = einsum_f32("bmd,vd->bmv", x_BMD, embedding_VD.astype(x_BMD.dtype))
        return logits_BMV + self.bias[...]
