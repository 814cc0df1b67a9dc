"""The device's share of perturbation: cells are edited, encoded and compared where they are.

Only one copy of a cell crosses to the device. Its edits arrive as a few numbers each (which genes
get which keys, see perturbation_edits) and are carried out there by sorting.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, encode
from geneformer_jax.model.heads import HeadConfig, head_module
from geneformer_jax.model.partial_encoding import first_token, run_blocks
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.model.sharding import BATCH
from geneformer_jax.perturbation.engine.edits import DELETE, SpecialTokens
from geneformer_jax.perturbation.engine.shared_first_block import (
    Neighbours,
    finish_first_block,
    share_first_block,
)

REPLICATED = PartitionSpec()
CELL, CLS = "cell", "cls"
MODES = (CELL, CLS)
# The key of `<eos>`, which stands behind all genes; those have keys below the model's positions.
_LAST = 1e9
# As in torch's cosine_similarity, against division by zero.
_SMALLEST_NORM = 1e-8


@dataclass(frozen=True)
class PerturbationPass:
    """What a compiled pass depends on beside its arrays.

    Attributes:
      config: shape of the model.
      runtime: how to compute.
      mesh: devices that share the work.
      layer: blocks below the hidden state that is compared.
      frame: what surrounds the genes of a cell.
      mode: what stands for a cell: "cell", the mean of its genes, or "cls".
      gene_rows: shifts of single genes wanted of each edit: 0 for none, -1 for all, or the N lowest
        cosines.
      head: cell classifier whose probabilities are wanted, or None.
      spread: whether each device has cells of its own, or all share the edits of the same cells.
      neighbours: "delete" or "overexpress" where the rows of each device are such edits of genes
        that follow each other in one cell, fillers last; these share the first block. "" otherwise.
      together: rows encoded at a time above a shared first block, a divisor of each device's rows.
    """

    config: EncoderConfig
    runtime: Runtime
    mesh: Mesh
    layer: int
    frame: SpecialTokens
    mode: str
    gene_rows: int = 0
    head: HeadConfig | None = None
    spread: bool = False
    neighbours: str = ""
    together: int = 0

    @property
    def whole(self) -> bool:
        """Whether the asked hidden state is needed of all tokens, or of `<cls>` alone."""
        return self.needs_genes or self.head is not None or self.layer == 0

    @property
    def blocks(self) -> int:
        """Blocks that are run on all tokens, to reach the asked hidden state."""
        return self.layer if self.whole else self.layer - 1

    @property
    def needs_genes(self) -> bool:
        """Whether hidden states of all genes are needed, or only `<cls>`."""
        return self.mode == CELL or self.gene_rows != 0


class Slots(NamedTuple):
    """Cells at hand, each as the model sees it before the edits.

    Attributes:
      tokens_CT: int32 tokens in sight, padded on the right.
      beyond_CK: int32 next genes beyond the cut, 0 for none; width 0 without refill.
      lengths_C: int32 tokens in sight, 0 for filler.
      cut_C: int32 genes cut off the tail of the original cell, see `Edits.cut`.
    """

    tokens_CT: jax.Array
    beyond_CK: jax.Array
    lengths_C: jax.Array
    cut_C: jax.Array


class Rows(NamedTuple):
    """Edits to make, each of one of the cells at hand; see `Edits`.

    Attributes:
      slot_R: int32 which of the cells at hand.
      positions_RK, keys_RK, added_RK: the edit.
    """

    slot_R: jax.Array
    positions_RK: jax.Array
    keys_RK: jax.Array
    added_RK: jax.Array


class Baseline(NamedTuple):
    """What the edited cells are compared with.

    Attributes:
      genes_CTD: float32 hidden states of unit length; width 0 where not needed.
      cell_CD: float32 embedding of unit length.
      states_CS: float32 its cosine with each state.
      classes_CC: float32 class probabilities.
    """

    genes_CTD: jax.Array
    cell_CD: jax.Array
    states_CS: jax.Array
    classes_CC: jax.Array


class Shifts(NamedTuple):
    """What the edits did.

    Attributes:
      gene_mean_R: float32 mean cosine of the genes left, NaN without such.
      cell_R: float32 cosine of the embeddings.
      states_RS: float32 shift towards each state.
      before_RC, after_RC: float32 class probabilities.
      genes_RN: float32 cosine of genes, infinite where there is none.
      affected_RN: int32 positions of these genes in the original row (see `Edits`).
    """

    gene_mean_R: jax.Array
    cell_R: jax.Array
    states_RS: jax.Array
    before_RC: jax.Array
    after_RC: jax.Array
    genes_RN: jax.Array
    affected_RN: jax.Array


class _Arranged(NamedTuple):
    tokens_RT: jax.Array
    lengths_R: jax.Array
    order_RT: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def baseline(
    pass_: PerturbationPass, params: Params, states_SD: jax.Array, slots: Slots
) -> Baseline:
    """Encodes the original cells."""

    def on_device(params: Params, states_SD: jax.Array, slots: Slots) -> Baseline:
        keys_CE = _keys(pass_.frame, slots, slots.cut_C)
        tokens_CE = jnp.concatenate([slots.tokens_CT, slots.beyond_CK], axis=1)
        arranged = _arrange(pass_.frame, tokens_CE, keys_CE, slots)
        hidden_CTD, cell_CD, classes_CC = _encode(pass_, params, arranged)
        cell_CD = _unit(cell_CD)
        genes_CTD = _unit(hidden_CTD) if pass_.needs_genes else hidden_CTD[:, :, :0]
        return Baseline(genes_CTD, cell_CD, cell_CD @ states_SD.T, classes_CC)

    cells = BATCH if pass_.spread else REPLICATED
    return jax.shard_map(
        on_device,
        mesh=pass_.mesh,
        in_specs=(REPLICATED, REPLICATED, cells),
        out_specs=cells,
        check_vma=False,
    )(params, states_SD, slots)


@functools.partial(jax.jit, static_argnums=0)
def perturb_rows(
    pass_: PerturbationPass,
    params: Params,
    states_SD: jax.Array,
    slots: Slots,
    before: Baseline,
    rows: Rows,
) -> Shifts:
    """Makes edits, encodes the edited cells and compares them with the original ones."""

    def on_device(
        params: Params, states_SD: jax.Array, slots: Slots, before: Baseline, rows: Rows
    ) -> Shifts:
        arranged, is_perturbed_RT = _edit(pass_.frame, slots, rows)
        compare = functools.partial(_compare, pass_, params, states_SD, slots, before)
        given = rows.slot_R, arranged, is_perturbed_RT
        if not pass_.neighbours:
            return compare(*given)
        return _in_groups(pass_, params, slots, rows, given, compare)

    cells = BATCH if pass_.spread else REPLICATED
    return jax.shard_map(
        on_device,
        mesh=pass_.mesh,
        in_specs=(REPLICATED, REPLICATED, cells, cells, BATCH),
        out_specs=BATCH,
        check_vma=False,
    )(params, states_SD, slots, before, rows)


def _compare(
    pass_: PerturbationPass,
    params: Params,
    states_SD: jax.Array,
    slots: Slots,
    before: Baseline,
    slot_R: jax.Array,
    arranged: _Arranged,
    is_perturbed_RT: jax.Array,
    started_RTD: jax.Array | None = None,
) -> Shifts:
    """Encodes edited cells and compares them with the original ones."""
    hidden_RTD, cell_RD, classes_RC = _encode(pass_, params, arranged, started_RTD)
    cell_RD = _unit(cell_RD)
    genes = _compare_genes(pass_, slots, before, slot_R, arranged, is_perturbed_RT, hidden_RTD)
    return Shifts(
        genes[0],
        jnp.sum(cell_RD * before.cell_CD[slot_R], axis=-1),
        cell_RD @ states_SD.T - before.states_CS[slot_R],
        before.classes_CC[slot_R],
        classes_RC,
        *genes[1:],
    )


def _in_groups(
    pass_: PerturbationPass,
    params: Params,
    slots: Slots,
    rows: Rows,
    given: tuple,
    compare: Callable[..., Shifts],
) -> Shifts:
    """Shares the first block among all rows and goes on with some at a time."""
    edits = len(rows.slot_R)
    front = None if pass_.neighbours == DELETE else pass_.frame.first
    start = rows.positions_RK[0, 0]
    cell = Neighbours(slots.tokens_CT[0], slots.lengths_C[0], start, front)
    shared = share_first_block(pass_.config, params, cell, edits, pass_.runtime)

    def one_group(edits_G: jax.Array, given: tuple) -> Shifts:
        return compare(*given, finish_first_block(shared, edits_G, given[1].order_RT))

    def nothing(edits_G: jax.Array, given: tuple) -> Shifts:
        shapes = jax.eval_shape(one_group, edits_G, given)
        return jax.tree.map(lambda told: jnp.zeros(told.shape, told.dtype), shapes)

    def unless_fillers(group: tuple) -> Shifts:
        is_real, *arguments = group
        return jax.lax.cond(is_real, one_group, nothing, *arguments)

    # Sizes are named: of arrays without elements none could be inferred.
    shape = edits // pass_.together, pass_.together
    is_real_R = rows.positions_RK[:, 0] < slots.tokens_CT.shape[1]
    split = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), (jnp.arange(edits), given))
    shifts = jax.lax.map(unless_fillers, (is_real_R.reshape(shape).any(axis=1), *split))
    return jax.tree.map(lambda x: x.reshape(edits, *x.shape[2:]), shifts)


def _keys(frame: SpecialTokens, slots: Slots, cut_C: jax.Array) -> jax.Array:
    """Returns each token's place in the ranking before any edit, float32 [C, T + K]."""
    position_T = jnp.arange(slots.tokens_CT.shape[1])
    genes_end_C1 = (slots.lengths_C - frame.framed)[:, None]
    keys_CT = jnp.where(position_T < genes_end_C1 - cut_C[:, None], position_T, jnp.inf)
    if frame.framed:
        keys_CT = jnp.where(position_T == genes_end_C1, _LAST, keys_CT)
    place_K = jnp.arange(slots.beyond_CK.shape[1])
    beyond_CK = jnp.where(slots.beyond_CK > 0, genes_end_C1 + place_K, jnp.inf)
    return jnp.concatenate([keys_CT, beyond_CK], axis=1).astype(jnp.float32)


def _edit(frame: SpecialTokens, slots: Slots, rows: Rows) -> tuple[_Arranged, jax.Array]:
    """Returns the edited cells, and which of their tokens are perturbed [R, T]."""
    own = jax.tree.map(lambda leaf: leaf[rows.slot_R], slots)
    tokens_RE = jnp.concatenate([own.tokens_CT, own.beyond_CK, rows.added_RK], axis=1)
    keys_RE = jnp.pad(
        _keys(frame, own, jnp.zeros_like(own.cut_C)),
        ((0, 0), (0, rows.added_RK.shape[1])),
        constant_values=jnp.inf,
    )
    row_R1 = jnp.arange(len(rows.slot_R))[:, None]
    keys_RE = keys_RE.at[row_R1, rows.positions_RK].set(rows.keys_RK, mode="drop")
    arranged = _arrange(frame, tokens_RE, keys_RE, own)
    is_perturbed_RE = jnp.zeros(tokens_RE.shape, bool)
    is_perturbed_RE = is_perturbed_RE.at[row_R1, rows.positions_RK].set(True, mode="drop")
    return arranged, jnp.take_along_axis(is_perturbed_RE, arranged.order_RT, axis=1)


def _arrange(
    frame: SpecialTokens, tokens_RE: jax.Array, keys_RE: jax.Array, own: Slots
) -> _Arranged:
    """Puts tokens in the order of their keys and cuts them to what the model sees."""
    padded = own.tokens_CT.shape[1]
    order_RT = jnp.argsort(keys_RE, axis=1, stable=True)[:, :padded]
    lengths_R = jnp.minimum(jnp.isfinite(keys_RE).sum(axis=1), frame.limit).astype(jnp.int32)
    place_T = jnp.arange(padded)
    if frame.framed:
        is_end_RT = place_T == lengths_R[:, None] - 1
        order_RT = jnp.where(is_end_RT, own.lengths_C[:, None] - 1, order_RT)
    tokens_RT = jnp.take_along_axis(tokens_RE, order_RT, axis=1)
    return _Arranged(jnp.where(place_T < lengths_R[:, None], tokens_RT, 0), lengths_R, order_RT)


def _encode(
    pass_: PerturbationPass,
    params: Params,
    arranged: _Arranged,
    started_RTD: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns float32 hidden states [R, T, D], cell embeddings [R, D], probabilities [R, C].

    Goes on from the first block's hidden states where these are given.
    """
    tokens_RT, lengths_R = arranged.tokens_RT, arranged.lengths_R
    to = {"lengths_B": lengths_R, "runtime": pass_.runtime}
    if started_RTD is None:
        hidden_RTD = encode(pass_.config, params, tokens_RT, layers=pass_.blocks, **to)
    else:
        hidden_RTD = run_blocks(pass_.config, params, started_RTD, first=1, last=pass_.blocks, **to)
    last_RTD = hidden_RTD
    if pass_.head is not None and pass_.layer < pass_.config.layers:
        bounds = {"first": pass_.layer, "last": pass_.config.layers}
        last_RTD = run_blocks(pass_.config, params, hidden_RTD, **bounds, **to)
    classes_RC = _probabilities(pass_, params, last_RTD)
    if not pass_.whole:
        cell_RD = first_token(pass_.config, params, hidden_RTD, block=pass_.blocks, **to)
        return hidden_RTD, cell_RD.astype(jnp.float32), classes_RC
    hidden_RTD = hidden_RTD.astype(jnp.float32)
    if pass_.mode == CLS:
        return hidden_RTD, hidden_RTD[:, 0], classes_RC
    is_gene_RT = tokens_RT >= pass_.frame.first_gene_token
    sums_RD = jnp.einsum("RTD,RT->RD", hidden_RTD, is_gene_RT.astype(jnp.float32))
    return hidden_RTD, sums_RD / jnp.maximum(is_gene_RT.sum(axis=1), 1)[:, None], classes_RC


def _probabilities(pass_: PerturbationPass, params: Params, last_RTD: jax.Array) -> jax.Array:
    """Returns the classifier's float32 probabilities [R, C], of no classes without one."""
    if pass_.head is None:
        return jnp.zeros((len(last_RTD), 0), jnp.float32)
    weights = params[pass_.head.kind]
    head = head_module(pass_.config, pass_.head, weights, pass_.runtime.precision)
    return jax.nn.softmax(head(last_RTD), axis=-1)


def _compare_genes(
    pass_: PerturbationPass,
    slots: Slots,
    before: Baseline,
    slot_R: jax.Array,
    arranged: _Arranged,
    is_perturbed_RT: jax.Array,
    hidden_RTD: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the mean cosine [R], and cosines and original positions [R, N] of genes.

    Compared are the genes that both cells have, the perturbed ones left out.
    """
    rows = len(slot_R)
    if not pass_.needs_genes:
        empty = jnp.zeros((rows, 0))
        return jnp.full(rows, jnp.nan, jnp.float32), empty, empty.astype(jnp.int32)
    genes_end_R1 = (slots.lengths_C - pass_.frame.framed - slots.cut_C)[slot_R][:, None]
    order_RT = arranged.order_RT
    is_compared_RT = (
        (arranged.tokens_RT >= pass_.frame.first_gene_token)
        & (order_RT < genes_end_R1)
        & ~is_perturbed_RT
    )
    original_RTD = before.genes_CTD[slot_R[:, None], jnp.where(is_compared_RT, order_RT, 0)]
    dots_RT = jnp.einsum("RTD,RTD->RT", hidden_RTD, original_RTD)
    norms_RT = jnp.sqrt(jnp.einsum("RTD,RTD->RT", hidden_RTD, hidden_RTD))
    cosines_RT = dots_RT / jnp.maximum(norms_RT, _SMALLEST_NORM)
    mean_R = jnp.mean(cosines_RT, axis=1, where=is_compared_RT)
    cosines_RT = jnp.where(is_compared_RT, cosines_RT, jnp.inf)
    if pass_.gene_rows < 0:
        return mean_R, cosines_RT, order_RT
    wanted = min(pass_.gene_rows, cosines_RT.shape[1])
    negated_RN, places_RN = jax.lax.top_k(-cosines_RT, wanted)
    return mean_R, -negated_RN, jnp.take_along_axis(order_RT, places_RN, axis=1)


def _unit(x_RD: jax.Array) -> jax.Array:
    norm = jnp.linalg.norm(x_RD, axis=-1, keepdims=True)
    return x_RD / jnp.maximum(norm, _SMALLEST_NORM)
