"""Preparation of cells: `gf.pp.tokenize(adata, model)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from geneformer_jax.scverse.reading import GeneArguments, count_arguments
from geneformer_jax.scverse.writing import parameters, written_into

if TYPE_CHECKING:
    import anndata

    from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
    from geneformer_jax.model.pretrained import PretrainedModel

__all__ = ["tokenize"]


def tokenize(
    adata: anndata.AnnData,
    model: PretrainedModel | GeneVocabulary,
    *,
    key_added: str = "geneformer_tokens",
    max_length: int | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    copy: bool = False,
    **genes: Unpack[GeneArguments],
) -> anndata.AnnData | None:
    """Ranks the genes of each cell: its rank value encoding, as the model reads it.

    The functions of `gf.tl` do so themselves; this is to look at, or for other software.

    Args:
      adata: raw counts.
      model: a pretrained model, or a vocabulary.
      key_added: name of the tokens in `.obsm`, and of what is said of them in `.uns`.
      max_length: of a cell, in tokens; by default what the model takes, and of a vocabulary the
        original's 2,048 (V1) or 4,096 (V2).
      layer: layer with the raw counts, or several, as "spliced+unspliced".
      use_raw: whether they are in `.raw`; by default the matrix that holds raw counts is found.
      copy: return a copy with the results, and leave `adata` as it is.
      genes: how gene ids are found, see `GeneArguments`; `gene_column` names a column of `.var`.

    Returns:
      None, or the copy. Written are `.obsm[key_added]`, uint16 CSR [cells, longest]: the tokens of
      each cell, the highest ranked first, and 0 (`<pad>`) behind them; cells that are left out have
      none. `.uns[key_added]`: `params`, `left_out` (reason -> cells) and `counts_read`.
      `vocabulary.names_of(tokens)` names them.

    Raises:
      InputError: the counts cannot be read or are not raw counts, or no gene id is known.
    """
    from geneformer_jax.cells.tokenization.tokenizer import default_max_length, tokenize_cells

    with written_into(adata, key_added, copy) as written:
        reading = count_arguments(adata, layer, use_raw, genes, tokenize)
        vocabulary = getattr(model, "vocabulary", model)
        config = getattr(model, "config", None)
        if max_length is None and config is not None and vocabulary is not None:
            max_length = min(default_max_length(vocabulary), config.positions)
        cells = tokenize_cells(adata, vocabulary, max_length=max_length, **reading)
        written.obsm[key_added] = _padded(cells, adata.n_obs)
        written.uns[key_added] = {
            "params": parameters(
                max_length=cells.max_length, vocabulary=vocabulary.hash, layer=layer,
                use_raw=use_raw, **genes,
            ),
            "left_out": {reason: n for reason, n in cells.dropped.items() if n},
            "counts_read": cells.match.facts(),
        }  # fmt: skip
    return written if copy else None


def __dir__() -> list[str]:
    # What completion in a notebook offers.
    return __all__


def _padded(cells, n_obs: int):
    """Tokens as a sparse matrix, whose zeros are pads: [all cells, longest]."""
    import numpy as np
    from scipy import sparse

    lengths = np.zeros(n_obs, np.int64)
    lengths[cells.rows] = cells.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    shape = (n_obs, int(lengths.max(initial=0)))
    return sparse.csr_matrix((cells.encodings.tokens, places, offsets), shape)
