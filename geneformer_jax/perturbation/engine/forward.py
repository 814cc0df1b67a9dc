"""The device's part of perturbation: cells are edited, encoded and compared where they are.

Only one copy of a cell crosses to the device. Its edits arrive as a few numbers each (which genes
get which keys, see `edits`) and are carried out there by sorting.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from geneformer_jax.model.attention.products import FLOAT32_PRODUCTS
from geneformer_jax.model.encoder import Params
from geneformer_jax.model.sharding import BATCH
from geneformer_jax.perturbation.engine.edits import DELETE, EditBatch, SpecialTokens
from geneformer_jax.perturbation.engine.encoding import (
    REPLICATED,
    SMALLEST_NORM,
    ForwardSpec,
    at_unit_length,
    cosines_with,
    encode_cells,
)
from geneformer_jax.perturbation.engine.shared_first_block import (
    ConsecutiveEdits,
    finish_first_block,
    share_first_block,
)
from geneformer_jax.perturbation.layout import CELL

# The key of `<eos>`, which stands behind all genes; those have keys below the model's positions.
_LAST = 1e9


class BaselineCells(NamedTuple):
    """Cells at hand as the model sees them before the edits, and what edits are compared with.

    Attributes:
      tokens_CT: int32 tokens in sight, padded on the right.
      beyond_CK: int32 next genes beyond the cut, 0 for none; width 0 without refill.
      lengths_C: int32 tokens in sight, 0 for filler.
      cut_C: int32 genes cut off the tail of the original cell, see `EditBatch.cut`.
      genes_CTD: float32 hidden states of unit length; width 0 where not needed. Like the rest, None
        until `encode_baseline`.
      cell_CD: float32 embedding of unit length.
      states_CS: float32 its cosine with each state.
      classes_CL: float32 class probabilities.
    """

    tokens_CT: jax.Array
    beyond_CK: jax.Array
    lengths_C: jax.Array
    cut_C: jax.Array
    genes_CTD: jax.Array | None = None
    cell_CD: jax.Array | None = None
    states_CS: jax.Array | None = None
    classes_CL: jax.Array | None = None


@functools.partial(jax.jit, static_argnums=0)
def encode_baseline(
    spec: ForwardSpec, params: Params, states_SD: jax.Array, cells: BaselineCells
) -> BaselineCells:
    """Encodes the original cells; returns them with what their edits are compared with."""

    def on_device(params: Params, states_SD: jax.Array, cells: BaselineCells) -> tuple:
        keys_CE = _keys(spec.special, cells, cells.cut_C)
        tokens_CE = jnp.concatenate([cells.tokens_CT, cells.beyond_CK], axis=1)
        tokens_CT, lengths_C, _ = _arrange(spec.special, tokens_CE, keys_CE, cells)
        hidden_CTD, cell_CD, classes_CL = encode_cells(spec, params, tokens_CT, lengths_C)
        cell_CD = at_unit_length(cell_CD)
        genes_CTD = at_unit_length(hidden_CTD) if spec.needs_genes else hidden_CTD[:, :, :0]
        return genes_CTD, cell_CD, cosines_with(states_SD, cell_CD), classes_CL

    placed = BATCH if spec.spread else REPLICATED
    encoded = jax.shard_map(
        on_device,
        mesh=spec.mesh,
        in_specs=(REPLICATED, REPLICATED, placed),
        out_specs=placed,
        check_vma=False,
    )(params, states_SD, cells)
    return BaselineCells(*cells[:4], *encoded)


@functools.partial(jax.jit, static_argnums=0)
def perturb_batch(
    spec: ForwardSpec,
    params: Params,
    states_SD: jax.Array,
    cells: BaselineCells,
    edits: EditBatch,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Makes edits, encodes the edited cells and compares them with the original ones.

    Args:
      spec: what is computed.
      params: weights.
      states_SD: embeddings of states at unit length.
      cells: that `encode_baseline` returned.
      edits: R of them, `EditBatch.for_device`.

    Returns:
      float32 values [R, M] in the order of `ForwardSpec.measures`, the mean cosine NaN where no
      gene is left, and behind them the vectors where these are wanted; float32 cosines [R, N] of
      single genes, infinite where there is none; and int32 tokens [R, N] of these genes.
    """

    def on_device(
        params: Params, states_SD: jax.Array, cells: BaselineCells, edits: EditBatch
    ) -> tuple:
        edited = edits.slots, *_edit(spec.special, cells, edits)
        compare = functools.partial(_compare, spec, params, states_SD, cells)
        if not spec.consecutive:
            return compare(*edited)
        return _in_groups(spec, params, cells, edits, edited, compare)

    placed = BATCH if spec.spread else REPLICATED
    return jax.shard_map(
        on_device,
        mesh=spec.mesh,
        in_specs=(REPLICATED, REPLICATED, placed, BATCH),
        out_specs=BATCH,
        check_vma=False,
    )(params, states_SD, cells, edits)


def _compare(
    spec: ForwardSpec,
    params: Params,
    states_SD: jax.Array,
    cells: BaselineCells,
    slots_R: jax.Array,
    tokens_RT: jax.Array,
    lengths_R: jax.Array,
    order_RT: jax.Array,
    is_compared_RT: jax.Array,
    started_RTD: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Encodes edited cells (see `_edit`) and compares them with the original ones."""
    # Pads come from anywhere in the row.
    kept_RT = jnp.minimum(order_RT, tokens_RT.shape[1] - 1) if spec.keep_positions else None
    hidden_RTD, cell_RD, after_RL = encode_cells(
        spec, params, tokens_RT, lengths_R, started_RTD, positions_RT=kept_RT
    )
    cell_RD = at_unit_length(cell_RD)
    genes_RT = None
    if spec.needs_genes:
        genes_RT = _gene_cosines(cells, slots_R, order_RT, is_compared_RT, hidden_RTD)
    values = [
        jnp.sum(cell_RD * cells.cell_CD[slots_R], axis=-1)[:, None],
        cosines_with(states_SD, cell_RD) - cells.states_CS[slots_R],
        cells.classes_CL[slots_R],
        after_RL,
    ]
    if spec.mode == CELL:
        values.insert(0, jnp.mean(genes_RT, axis=1, where=is_compared_RT)[:, None])
    if spec.cell_vectors:
        values.append(cell_RD - cells.cell_CD[slots_R])
    values_RM = jnp.concatenate(values, axis=1)
    if spec.gene_rows == 0:
        empty = jnp.zeros((len(slots_R), 0))
        return values_RM, empty, empty.astype(jnp.int32)
    return values_RM, *_wanted_genes(spec, genes_RT, is_compared_RT, tokens_RT)


def _in_groups(
    spec: ForwardSpec,
    params: Params,
    cells: BaselineCells,
    edits: EditBatch,
    edited: tuple,
    compare: Callable[..., tuple],
) -> tuple:
    """Shares the first block among all rows and goes on with some at a time."""
    rows = len(edits.slots)
    front = None if spec.consecutive == DELETE else spec.special.first
    start = edits.positions[0, 0]
    cell = ConsecutiveEdits(cells.tokens_CT[0], cells.lengths_C[0], start, front)
    shared = share_first_block(spec.config, params, cell, rows, spec.runtime)

    def one_group(edits_G: jax.Array, edited: tuple) -> tuple:
        order_GT = edited[3]
        return compare(*edited, finish_first_block(shared, edits_G, order_GT))

    def nothing(edits_G: jax.Array, edited: tuple) -> tuple:
        shapes = jax.eval_shape(one_group, edits_G, edited)
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def unless_fillers(group: tuple) -> tuple:
        is_real, *arguments = group
        return jax.lax.cond(is_real, one_group, nothing, *arguments)

    # Sizes are named: of arrays without elements none could be inferred.
    shape = rows // spec.together, spec.together
    is_real_R = edits.positions[:, 0] < cells.tokens_CT.shape[1]
    split = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), (jnp.arange(rows), edited))
    shifts = jax.lax.map(unless_fillers, (is_real_R.reshape(shape).any(axis=1), *split))
    return jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), shifts)


def _keys(special: SpecialTokens, cells: BaselineCells, cut_C: jax.Array) -> jax.Array:
    """Returns each token's place in the ranking before any edit, float32 [C, T + K]."""
    position_T = jnp.arange(cells.tokens_CT.shape[1])
    genes_end_C1 = (cells.lengths_C - special.framed)[:, None]
    keys_CT = jnp.where(position_T < genes_end_C1 - cut_C[:, None], position_T, jnp.inf)
    if special.framed:
        keys_CT = jnp.where(position_T == genes_end_C1, _LAST, keys_CT)
    place_K = jnp.arange(cells.beyond_CK.shape[1])
    beyond_CK = jnp.where(cells.beyond_CK > 0, genes_end_C1 + place_K, jnp.inf)
    return jnp.concatenate([keys_CT, beyond_CK], axis=1).astype(jnp.float32)


def _edit(
    special: SpecialTokens, cells: BaselineCells, edits: EditBatch
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Edits cells.

    Returns:
      tokens [R, T] and lengths [R] of the edited cells; position [R, T] of each token in the row
      of its original (see `EditBatch`); and whether [R, T] it is compared with that: genes that
      both cells have, the perturbed ones left out.
    """
    own = BaselineCells(*(leaf[edits.slots] for leaf in cells[:4]))
    tokens_RE = jnp.concatenate([own.tokens_CT, own.beyond_CK, edits.added], axis=1)
    keys_RE = jnp.pad(
        _keys(special, own, jnp.zeros_like(own.cut_C)),
        ((0, 0), (0, edits.added.shape[1])),
        constant_values=jnp.inf,
    )
    row_R1 = jnp.arange(len(edits.slots))[:, None]
    keys_RE = keys_RE.at[row_R1, edits.positions].set(edits.keys, mode="drop")
    tokens_RT, lengths_R, order_RT = _arrange(special, tokens_RE, keys_RE, own)
    is_perturbed_RE = jnp.zeros(tokens_RE.shape, bool)
    is_perturbed_RE = is_perturbed_RE.at[row_R1, edits.positions].set(True, mode="drop")
    genes_end_R1 = (own.lengths_C - special.framed - own.cut_C)[:, None]
    is_compared_RT = (
        (tokens_RT >= special.first_gene_token)
        & (order_RT < genes_end_R1)
        & ~jnp.take_along_axis(is_perturbed_RE, order_RT, axis=1)
    )
    return tokens_RT, lengths_R, order_RT, is_compared_RT


def _arrange(
    special: SpecialTokens, tokens_RE: jax.Array, keys_RE: jax.Array, own: BaselineCells
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Puts tokens in the order of their keys and cuts them to what the model sees.

    Returns:
      tokens [R, T], lengths [R], and the position [R, T] from which each token came.
    """
    padded = own.tokens_CT.shape[1]
    order_RT = jnp.argsort(keys_RE, axis=1, stable=True)[:, :padded]
    lengths_R = jnp.minimum(jnp.isfinite(keys_RE).sum(axis=1), special.limit).astype(jnp.int32)
    place_T = jnp.arange(padded)
    if special.framed:
        is_end_RT = place_T == lengths_R[:, None] - 1
        order_RT = jnp.where(is_end_RT, own.lengths_C[:, None] - 1, order_RT)
    tokens_RT = jnp.take_along_axis(tokens_RE, order_RT, axis=1)
    return jnp.where(place_T < lengths_R[:, None], tokens_RT, 0), lengths_R, order_RT


def _gene_cosines(
    cells: BaselineCells,
    slots_R: jax.Array,
    order_RT: jax.Array,
    is_compared_RT: jax.Array,
    hidden_RTD: jax.Array,
) -> jax.Array:
    """Returns the cosine of each compared gene before and after the edit, [R, T]."""
    original_RTD = cells.genes_CTD[slots_R[:, None], jnp.where(is_compared_RT, order_RT, 0)]
    dot = functools.partial(jnp.einsum, "RTD,RTD->RT", precision=FLOAT32_PRODUCTS)
    dots_RT = dot(hidden_RTD, original_RTD)
    norms_RT = jnp.sqrt(dot(hidden_RTD, hidden_RTD))
    return dots_RT / jnp.maximum(norms_RT, SMALLEST_NORM)


def _wanted_genes(
    spec: ForwardSpec, cosines_RT: jax.Array, is_compared_RT: jax.Array, tokens_RT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and tokens [R, N] of the genes whose shifts are wanted."""
    cosines_RT = jnp.where(is_compared_RT, cosines_RT, jnp.inf)
    if spec.gene_rows < 0:
        return cosines_RT, tokens_RT
    wanted = min(spec.gene_rows, cosines_RT.shape[1])
    negated_RN, places_RN = jax.lax.top_k(-cosines_RT, wanted)
    return -negated_RN, jnp.take_along_axis(tokens_RT, places_RN, axis=1)
