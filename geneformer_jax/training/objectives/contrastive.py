"""Contrastive learning beside masked genes: a cell and some of its genes are to be embedded alike.

Masked genes alone ask for a good vector of each gene, not of the cell. The second loss asks for
that: the mean embedding of some of a cell's genes is to tell which of the batch's cells it is of.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from geneformer_jax.batches.loader import Batch
from geneformer_jax.batches.views import count_of_cells, draw_views
from geneformer_jax.model.attention.products import FLOAT32_PRODUCTS
from geneformer_jax.model.encoder import Params, encode, encode_twice
from geneformer_jax.training.config import ObjectiveConfig
from geneformer_jax.training.objectives.masked_genes import (
    LossSums,
    masked_gene_sums_of,
    places_of,
)
from geneformer_jax.training.state import Recipe


class ViewedBatch(NamedTuple):
    """A batch of masked cells, and a view of each that is not masked.

    Attributes:
      masked: the cells.
      views: as many rows, see batches.views.
    """

    masked: Batch
    views: Batch


class CellVectors(NamedTuple):
    """Vectors of the cells in a batch.

    Attributes:
      wholes_BCD: float32 mean of each cell's genes that are not masked, [rows, cells of a row, D].
      views_BCD: that of its view.
      is_cell_BC: whether there is such a cell.
    """

    wholes_BCD: jax.Array
    views_BCD: jax.Array
    is_cell_BC: jax.Array


def info_nce(cells: CellVectors, temperature: float) -> jax.Array:
    """Returns the mean contrastive loss of a batch, in nats; 0 for fewer than two cells.

    For each view the cross-entropy of telling its cell from all other cells of the batch, by cosine
    over temperature, and for each cell that of telling its view (InfoNCE in both directions; van
    den Oord et al., 2018, Radford et al., 2021).

    Args:
      cells: of all rows of the batch.
      temperature: of the softmax.
    """
    wholes_ND, views_ND = map(_directions, cells[:2])
    is_cell_N = cells.is_cell_BC.reshape(-1)
    logits_NN = jnp.dot(wholes_ND, views_ND.T, precision=FLOAT32_PRODUCTS) / temperature
    losses_N = sum(_cross_entropy(logits, is_cell_N) for logits in (logits_NN, logits_NN.T)) / 2
    return jnp.where(is_cell_N, losses_N, 0.0).sum() / jnp.maximum(is_cell_N.sum(), 1)


def _directions(vectors_BCD: jax.Array) -> jax.Array:
    """Returns vectors of length 1, [B * C, D]."""
    squares_BC1 = (vectors_BCD**2).sum(axis=-1, keepdims=True)
    directions = vectors_BCD / jnp.sqrt(jnp.maximum(squares_BC1, 1e-12))
    return directions.reshape(-1, vectors_BCD.shape[-1])


def _cross_entropy(logits_NN: jax.Array, is_cell_N: jax.Array) -> jax.Array:
    """Returns the cross-entropy of the diagonal in nats, among the columns that are cells."""
    # Not -inf: a row of nothing but that has no gradient but NaN.
    among_NN = jnp.where(is_cell_N[None, :], logits_NN, jnp.finfo(logits_NN.dtype).min)
    return jax.nn.logsumexp(among_NN, axis=-1) - jnp.diagonal(among_NN)


def means_of_genes(
    batch: Batch, hidden_BTD: jax.Array, first_gene_token: int
) -> tuple[jax.Array, jax.Array]:
    """Returns (float32 mean of each cell's genes [B, C, D], whether there is such a cell [B, C]).

    Args:
      batch: rows of one cell or several.
      hidden_BTD: of its tokens.
      first_gene_token: tokens below it, such as masks, are left out.
    """
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
    return sums_BCD / jnp.maximum(genes_BC, 1)[..., None], belongs_BTC.any(axis=1)


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

    def together(self, params: Params, parts: ViewedBatch, keys: jax.Array) -> Any:
        """Returns for each part the gradient of the contrastive loss by its vectors, and the loss.

        The cells of a part are to be told from those of all parts, but only the vectors of all are
        held at once, not their activations (Gao et al., Scaling deep contrastive learning batch
        size under memory limited setup, 2021).
        """

        def vectors(part: tuple[ViewedBatch, jax.Array]) -> CellVectors:
            batch, key = part
            below_BTD = self._encode(params, batch.masked, key)
            return self._vectors(params, batch, below_BTD, key)

        cells = jax.lax.map(vectors, (parts, keys))
        k = len(keys)

        def loss(vectors: tuple[jax.Array, jax.Array]) -> jax.Array:
            # As of one batch: [parts, rows, ...] is [rows of all parts, ...].
            every = jax.tree.map(
                lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (*vectors, cells.is_cell_BC)
            )
            return info_nce(CellVectors(*every), self.objective.temperature)

        value, gradients = jax.value_and_grad(loss)(cells[:2])
        return gradients, jnp.broadcast_to(value / k, (k,))

    def loss(
        self, params: Params, part: ViewedBatch, size: Any, key: jax.Array, together: Any = None
    ) -> tuple[jax.Array, LossSums]:
        """Returns what a part adds to the losses of its batch, and its sums."""
        config, masked = self.config, part.masked
        below_BTD, last_BTD = encode_twice(
            config,
            params,
            masked.tokens_BT,
            layers=self._layers,
            runtime=self.runtime,
            dropout_key=key,
            **places_of(masked),
        )
        sums = masked_gene_sums_of(config, params, last_BTD, masked, self.runtime)
        cells = self._vectors(params, part, below_BTD, key)
        if together is None:
            value = added = info_nce(cells, self.objective.temperature)
        else:
            gradients, value = together
            products = jax.tree.map(lambda a, b: (a * b).sum(), cells[:2], gradients)
            added = sum(products)
        total = sums.loss / size + self.objective.contrastive * added
        return total, sums._replace(contrastive=value)

    @property
    def _layers(self) -> int:
        return self.config.layers + self.objective.hidden_layer

    def _encode(self, params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        return encode(
            self.config,
            params,
            batch.tokens_BT,
            layers=self._layers,
            runtime=self.runtime,
            dropout_key=key,
            **places_of(batch),
        )

    def _vectors(
        self, params: Params, batch: ViewedBatch, below_BTD: jax.Array, key: jax.Array
    ) -> CellVectors:
        """Returns vectors of cells by their hidden state, and of their views."""
        first_gene = self.vocabulary.first_gene_token
        viewed_BTD = self._encode(params, batch.views, jax.random.fold_in(key, 1))
        wholes_BCD, is_cell_BC = means_of_genes(batch.masked, below_BTD, first_gene)
        views_BCD, _ = means_of_genes(batch.views, viewed_BTD, first_gene)
        return CellVectors(wholes_BCD, views_BCD, is_cell_BC)
