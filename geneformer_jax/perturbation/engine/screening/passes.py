"""The device's part of a screen: cells with their later tokens moved up, and derivatives.

Deleting the gene at position p does two things. All later tokens move up by one position: the
cosine of the whole cell with a state is S(p) when the tokens behind p have moved. And the gene
itself is missing from the attention of all others and from the mean of the cell. S is evaluated at
a few positions; what moving each token adds to S, and what taking each gene away adds, come from
backward passes. The same holds for the probability of a class. Values are in the order of
`ForwardSpec.screened`.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from geneformer_jax.model.encoder import Params
from geneformer_jax.model.gated_encoding import embed_moved, run_gated_blocks
from geneformer_jax.model.sharding import BATCH
from geneformer_jax.perturbation.engine.encoding import (
    REPLICATED,
    ForwardSpec,
    at_unit_length,
    class_probabilities,
    cosines_with,
    encode_cells,
    pool_genes,
)


class Derivatives(NamedTuple):
    """First-order effects on the values of each cell: cosines with states, and probabilities.

    Attributes:
      values_CS: float32 the values of the cell.
      moving_CST: float32 what moving a token by one position more adds.
      removal_CST: float32 what taking a gene out of attention and mean adds.
    """

    values_CS: jax.Array
    moving_CST: jax.Array
    removal_CST: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def values_when_moved(
    spec: ForwardSpec,
    params: Params,
    states_SD: jax.Array,
    tokens_CT: jax.Array,
    lengths_C: jax.Array,
    slots_R: jax.Array,
    positions_R: jax.Array,
) -> jax.Array:
    """Encodes cells whose tokens behind a position have moved up by one.

    Args:
      spec: what stands for a cell, at which hidden layer.
      params: weights.
      states_SD: embeddings of states at unit length.
      tokens_CT: cells, padded on the right; on several devices each has cells of its own, whose
        rows follow those of the device before.
      lengths_C: their tokens.
      slots_R: which cell of its device a row takes.
      positions_R: of each row the position behind which all tokens move.

    Returns:
      float32 values [R, S].
    """

    def on_device(params, states_SD, tokens_CT, lengths_C, slots_R, positions_R):
        tokens_RT, lengths_R = tokens_CT[slots_R], lengths_C[slots_R]
        embedded_RTD = embed_moved(
            spec.config, params, tokens_RT, _behind(tokens_RT, positions_R), spec.runtime
        )
        _, cell_RD, classes_RL = encode_cells(spec, params, tokens_RT, lengths_R, embedded_RTD, 0)
        return jnp.concatenate(
            [cosines_with(states_SD, at_unit_length(cell_RD)), classes_RL], axis=1
        )

    return jax.shard_map(
        on_device,
        mesh=spec.mesh,
        in_specs=(REPLICATED, REPLICATED, *[BATCH] * 4),
        out_specs=BATCH,
        check_vma=False,
    )(params, states_SD, tokens_CT, lengths_C, slots_R, positions_R)


@functools.partial(jax.jit, static_argnums=0)
def differentiate(
    spec: ForwardSpec,
    params: Params,
    states_SD: jax.Array,
    tokens_CT: jax.Array,
    lengths_C: jax.Array,
    positions_C: jax.Array,
) -> Derivatives:
    """Computes what moving or removing each token of cells does; see `Derivatives`.

    All tokens behind a position of each cell, `positions_C`, have moved up by one before.
    """

    def on_device(params, states_SD, tokens_CT, lengths_C, positions_C):
        values = functools.partial(_gated_values, spec, params, states_SD, tokens_CT, lengths_C)
        moved_CT, zero_CT = _behind(tokens_CT, positions_C), jnp.zeros(tokens_CT.shape)
        values_CS, (moving_CST, bias_CST, weight_CST) = _by_value(
            values, moved_CT, zero_CT, zero_CT + 1
        )
        return Derivatives(values_CS, moving_CST, -(bias_CST + weight_CST))

    return jax.shard_map(
        on_device,
        mesh=spec.mesh,
        in_specs=(REPLICATED, REPLICATED, *[BATCH] * 3),
        out_specs=BATCH,
        check_vma=False,
    )(params, states_SD, tokens_CT, lengths_C, positions_C)


def _behind(tokens_RT: jax.Array, positions_R: jax.Array) -> jax.Array:
    """Returns 1 for the tokens behind a position and 0 for others, float32 [R, T]."""
    position_T = jnp.arange(tokens_RT.shape[1])
    return (position_T > positions_R[:, None]).astype(jnp.float32)


def _gated_values(
    spec: ForwardSpec,
    params: Params,
    states_SD: jax.Array,
    tokens_CT: jax.Array,
    lengths_C: jax.Array,
    moved_CT: jax.Array,
    bias_CT: jax.Array,
    weights_CT: jax.Array,
) -> jax.Array:
    """Returns values [C, S]; tokens have moved, attract attention, and weigh in the mean."""
    # Kept whole, the hidden states of all blocks would take more memory than an exact run.
    runtime = replace(spec.runtime, remat="full")
    hidden_CTD = embed_moved(spec.config, params, tokens_CT, moved_CT, runtime)
    gated = functools.partial(run_gated_blocks, spec.config, params, runtime=runtime)
    hidden_CTD = gated(hidden_CTD, lengths_C, bias_CT, last=spec.depth)
    cell_CD = pool_genes(spec, tokens_CT, hidden_CTD.astype(jnp.float32), weights_CT)
    cosines_CS = cosines_with(states_SD, at_unit_length(cell_CD))
    if spec.head is None:
        return cosines_CS
    bounds = {"first": spec.depth, "last": spec.config.layers}
    last_CTD = gated(hidden_CTD, lengths_C, bias_CT, **bounds)
    classes_CL = class_probabilities(spec, params, last_CTD, lengths_C, weights_CT - 1)
    return jnp.concatenate([cosines_CS, classes_CL], axis=1)


def _by_value(
    values: Callable[..., jax.Array], *inputs_CT: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Returns values [C, S], and their derivatives with respect to each input, [C, S, T]."""
    values_CS, pull = jax.vjp(values, *inputs_CT)
    cells, number = values_CS.shape
    one_SCS = jnp.broadcast_to(jnp.eye(number)[:, None], (number, cells, number))
    gradients = jax.lax.map(pull, one_SCS)
    return values_CS, tuple(each.swapaxes(0, 1) for each in gradients)
