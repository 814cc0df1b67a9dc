"""Contrastive learning beside masked genes: two views of a cell are to be embedded alike.

Masked genes alone ask for a good vector of each gene, not of the cell. The second loss asks for
that: the mean embedding of a random part of a cell's genes is to tell which other part is of the
same cell.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from geneformer_jax.batches.loader import Batch
from geneformer_jax.batches.views import VIEWS, count_of_cells, draw_views
from geneformer_jax.model.attention.products import FLOAT32_PRODUCTS
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, encode
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.training.config import ObjectiveConfig
from geneformer_jax.training.objectives.masked_genes import LossSums, places_of
from geneformer_jax.training.state import Recipe, split_rows


class ViewedBatch(NamedTuple):
    """A batch of masked cells, and views of the same cells that are not masked.

    Attributes:
      masked: the cells.
      views: two rows for each of theirs, see batches.views.
    """

    masked: Batch
    views: Batch


class CellVectors(NamedTuple):
    """Vectors of the cells in a batch of views.

    Attributes:
      vectors_BCD: float32 mean of each cell's genes, [rows, cells of a row, D].
      is_cell_BC: whether there is such a cell.
    """

    vectors_BCD: jax.Array
    is_cell_BC: jax.Array


def view_vectors(
    config: EncoderConfig,
    params: Params,
    views: Batch,
    runtime: Runtime,
    dropout_key: jax.Array | None,
    *,
    layers: int,
    first_gene_token: int,
) -> CellVectors:
    """Returns the mean of the genes of each cell in a batch of views.

    Args:
      config: shape of the model.
      params: weights.
      views: rows 2i and 2i + 1 hold views of the same cells.
      runtime: how to compute.
      dropout_key: a key switches dropout on.
      layers: blocks below the hidden state that is taken.
      first_gene_token: tokens below it are special.
    """
    hidden_BTD = encode(
        config,
        params,
        views.tokens_BT,
        layers=layers,
        runtime=runtime,
        dropout_key=dropout_key,
        **places_of(views),
    )
    return _cell_vectors(views, hidden_BTD, first_gene_token)


def info_nce(cells: CellVectors, temperature: float) -> jax.Array:
    """Returns the mean contrastive loss of a batch of views, in nats; 0 for fewer than two cells.

    For each view the cross-entropy of telling its twin from the twins of all other cells of the
    batch, by cosine over temperature (InfoNCE in both directions; van den Oord et al., 2018,
    Radford et al., 2021).

    Args:
      cells: of all rows of the batch; rows 2i and 2i + 1 hold views of the same cells.
      temperature: of the softmax.
    """
    vectors_BCD, is_cell_BC = cells
    norms_BC1 = jnp.sqrt(jnp.maximum((vectors_BCD**2).sum(axis=-1, keepdims=True), 1e-12))
    directions = vectors_BCD / norms_BC1
    first_ND, second_ND = (
        directions[view::VIEWS].reshape(-1, vectors_BCD.shape[-1]) for view in range(VIEWS)
    )
    is_cell_N = is_cell_BC[::VIEWS].reshape(-1)
    logits_NN = jnp.dot(first_ND, second_ND.T, precision=FLOAT32_PRODUCTS) / temperature
    losses_N = sum(_cross_entropy(logits, is_cell_N) for logits in (logits_NN, logits_NN.T)) / VIEWS
    return jnp.where(is_cell_N, losses_N, 0.0).sum() / jnp.maximum(is_cell_N.sum(), 1)


def _cross_entropy(logits_NN: jax.Array, is_cell_N: jax.Array) -> jax.Array:
    """Returns the cross-entropy of the diagonal in nats, among the columns that are cells."""
    # Not -inf: a row of nothing but that has no gradient but NaN.
    among_NN = jnp.where(is_cell_N[None, :], logits_NN, jnp.finfo(logits_NN.dtype).min)
    return jax.nn.logsumexp(among_NN, axis=-1) - jnp.diagonal(among_NN)


def _cell_vectors(batch: Batch, hidden_BTD: jax.Array, first_gene_token: int) -> CellVectors:
    is_gene_BT = batch.tokens_BT >= first_gene_token
    if batch.packing is None:
        real_BT = jnp.arange(batch.tokens_BT.shape[1]) < batch.lengths_B[:, None]
        segments_BT, cells = real_BT.astype(jnp.int32), 1
    else:
        segments_BT, cells = batch.packing.segments_BT, batch.cells_B.shape[1]
    genes_BC = count_of_cells(is_gene_BT, segments_BT, cells)
    belongs_BTC = segments_BT[..., None] == jnp.arange(1, cells + 1)
    weights_BTC = (belongs_BTC & is_gene_BT[..., None]).astype(jnp.float32)
    hidden_BTD = hidden_BTD.astype(jnp.float32)
    sums_BCD = jnp.einsum("BTD,BTC->BCD", hidden_BTD, weights_BTC, precision=FLOAT32_PRODUCTS)
    is_cell_BC = belongs_BTC.any(axis=1)
    return CellVectors(sums_BCD / jnp.maximum(genes_BC, 1)[..., None], is_cell_BC)


@dataclasses.dataclass(frozen=True)
class ContrastiveRecipe(Recipe):
    """The recipe of a step that learns masked genes, and cells from views of them.

    Attributes:
      objective: weight and form of the contrastive loss; `masking` and `vocabulary` are given.
    """

    objective: ObjectiveConfig = ObjectiveConfig()

    def prepare(self, batch: Batch, step: jax.Array) -> ViewedBatch:
        """Returns the batch masked, and views of its cells."""
        views = draw_views(
            batch,
            seed=self.seed,
            step=step,
            config=self.objective.views,
            first_gene_token=self.vocabulary.first_gene_token,
            pad_token=self.vocabulary.pad_id,
        )
        return ViewedBatch(super().prepare(batch, step), views)

    def tokens(self, batch: ViewedBatch) -> tuple[jax.Array, int]:
        """Returns the real tokens of a batch, and all with padding."""
        (real, padded), (viewed, with_padding) = map(super().tokens, batch)
        return real + viewed, padded + with_padding

    def size(self, batch: ViewedBatch) -> Any:
        """Returns what a whole batch's losses of masked genes are divided by."""
        return super().size(batch.masked)

    def split(self, batch: ViewedBatch, k: int) -> ViewedBatch:
        """Returns k parts of a batch, views of the same cells in the same part."""
        return ViewedBatch(split_rows(batch.masked, k), split_rows(batch.views, k, VIEWS))

    def together(self, params: Params, parts: ViewedBatch, keys: jax.Array) -> Any:
        """Returns for each part the gradient of the contrastive loss by its vectors, and the loss.

        The cells of a part are to be told from those of all parts, but only the vectors of all are
        held at once, not their activations (Gao et al., Scaling deep contrastive learning batch
        size under memory limited setup, 2021).
        """

        def vectors(part: tuple[Batch, jax.Array]) -> CellVectors:
            return self._vectors(params, *part)

        cells = jax.lax.map(vectors, (parts.views, keys))
        k, C = len(keys), cells.is_cell_BC.shape[-1]

        def loss(vectors_KBCD: jax.Array) -> jax.Array:
            every = vectors_KBCD.reshape(-1, C, vectors_KBCD.shape[-1])
            all_cells = CellVectors(every, cells.is_cell_BC.reshape(-1, C))
            return info_nce(all_cells, self.objective.temperature)

        value, gradient_KBCD = jax.value_and_grad(loss)(cells.vectors_BCD)
        return gradient_KBCD, jnp.broadcast_to(value / k, (k,))

    def loss(
        self, params: Params, part: ViewedBatch, size: Any, key: jax.Array, together: Any = None
    ) -> tuple[jax.Array, LossSums]:
        """Returns what a part adds to the losses of its batch, and its sums."""
        masked, sums = super().loss(params, part.masked, size, key)
        cells = self._vectors(params, part.views, key)
        if together is None:
            value = added = info_nce(cells, self.objective.temperature)
        else:
            gradient_BCD, value = together
            added = (cells.vectors_BCD * gradient_BCD).sum()
        return masked + self.objective.contrastive * added, sums._replace(contrastive=value)

    def _vectors(self, params: Params, views: Batch, key: jax.Array) -> CellVectors:
        return view_vectors(
            self.config,
            params,
            views,
            self.runtime,
            jax.random.fold_in(key, VIEWS),
            layers=self.config.layers + self.objective.hidden_layer,
            first_gene_token=self.vocabulary.first_gene_token,
        )
