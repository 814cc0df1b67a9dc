"""The compiled passes of embedding: from padded tokens to pooled hidden states, on all devices."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from geneformer_jax.embedding.gene_means import GeneTotals, add_states
from geneformer_jax.model.attention.products import FLOAT32_PRODUCTS
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, encode, encode_all_layers
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import BATCH, REPLICATED


class Pass(NamedTuple):
    """What a compiled pass depends on beside its arrays.

    Attributes:
      config: shape of the model.
      runtime: how to compute.
      mesh: devices that share the cells of a batch.
      layers: blocks below each of the K hidden states that are taken.
      first_gene_token: tokens below it are special.
      mode: one of MODES.
    """

    config: EncoderConfig
    runtime: Runtime
    mesh: Mesh
    layers: tuple[int, ...]
    first_gene_token: int
    mode: str


@functools.partial(jax.jit, static_argnums=0)
def take_states(
    pass_: Pass, params: Params, tokens_BT: jax.Array, lengths_B: jax.Array
) -> jax.Array:
    """Returns float32 [B, K, D], or [B, T, K, D] for every occurrence."""

    def on_device(params: Params, tokens_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
        hidden_KBTD = _hidden(pass_, params, tokens_BT, lengths_B)
        if pass_.mode == "occurrence":
            return jnp.moveaxis(hidden_KBTD, 0, 2)
        if pass_.mode == "cls":
            return hidden_KBTD[:, :, 0].swapaxes(0, 1)
        is_gene_BT = _is_real(tokens_BT, lengths_B) & (tokens_BT >= pass_.first_gene_token)
        weights_BT = is_gene_BT.astype(jnp.float32)
        sums_BKD = jnp.einsum("KBTD,BT->BKD", hidden_KBTD, weights_BT, precision=FLOAT32_PRODUCTS)
        return sums_BKD / jnp.maximum(is_gene_BT.sum(axis=1), 1)[:, None, None]

    return _on_devices(pass_, on_device, BATCH)(params, tokens_BT, lengths_B)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def add_genes(
    pass_: Pass, totals: GeneTotals, params: Params, tokens_BT: jax.Array, lengths_B: jax.Array
) -> GeneTotals:
    """Adds a batch to the totals that each device keeps of its own cells."""

    def on_device(
        totals: GeneTotals, params: Params, tokens_BT: jax.Array, lengths_B: jax.Array
    ) -> GeneTotals:
        own = jax.tree.map(lambda leaf: leaf[0], totals)
        hidden_KBTD = _hidden(pass_, params, tokens_BT, lengths_B)
        added = add_states(own, hidden_KBTD, tokens_BT, _is_real(tokens_BT, lengths_B))
        return jax.tree.map(lambda leaf: leaf[None], added)

    run = _on_devices(pass_, on_device, BATCH, carried=True)
    return run(totals, params, tokens_BT, lengths_B)


def _on_devices(
    pass_: Pass, run: Callable[..., Any], out: PartitionSpec, carried: bool = False
) -> Callable[..., Any]:
    """Runs each device on its own cells: no attention kernel has to be cut up by the compiler."""
    specs = (REPLICATED, BATCH, BATCH)
    in_specs = (BATCH, *specs) if carried else specs
    return jax.shard_map(run, mesh=pass_.mesh, in_specs=in_specs, out_specs=out, check_vma=False)


def _hidden(pass_: Pass, params: Params, tokens_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Returns the asked hidden states, float32 [K, B, T, D]."""
    inputs, highest = (pass_.config, params, tokens_BT, lengths_B), max(pass_.layers)
    if len(pass_.layers) == 1:
        hidden_KBTD = encode(*inputs, layers=highest, runtime=pass_.runtime)[None]
    else:
        every = encode_all_layers(*inputs, layers=highest, runtime=pass_.runtime)
        hidden_KBTD = every[jnp.array(pass_.layers)]
    return hidden_KBTD.astype(jnp.float32)


def _is_real(tokens_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
    return jnp.arange(tokens_BT.shape[1]) < lengths_B[:, None]
