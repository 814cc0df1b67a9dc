"""Embeddings of cells and genes from the hidden states of a pretrained encoder.

Cells are encoded in batches of similar length and come back in the order of the input, where the
original returns them from longest to shortest.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import anndata as ad
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from geneformer_jax.batches.loader import pad_cells
from geneformer_jax.batches.plan import BatchPlan, BatchShape, choose_buckets
from geneformer_jax.cells.cell_store import CellStore
from geneformer_jax.cells.count_paths import is_counts
from geneformer_jax.cells.counts import AnnDataSource, open_counts
from geneformer_jax.cells.tokenization import Recipe, default_max_length, tokenize_source
from geneformer_jax.cells.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.progress import Progress
from geneformer_jax.model.attention import choose_attention
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import Params, Runtime, encode
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.pretrained import PretrainedModel

KEY = "X_geneformer"
MODES = ("cell", "cls", "gene")
_TOKENS_PER_BATCH = 16_384
# A bucket is one more program to compile, which only enough cells repay.
_MOST_BUCKETS, _CELLS_PER_BUCKET = 8, 32


class EncodedCells(Protocol):
    """Tokenised cells: a CellStore, or TokenizedCells in memory.

    Attributes:
      lengths: int32 [cells] tokens of each cell.
      obs: [cells] per-cell columns, indexed by cell id.
      vocabulary: of the tokens.
    """

    lengths: np.ndarray
    obs: pd.DataFrame
    vocabulary: GeneVocabulary

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens of cells."""


class TokenBatch(NamedTuple):
    """Padded cells of one bucket.

    Attributes:
      cells: int64 [real cells] their numbers in the input; rows beyond them are filler.
      tokens_BT: int32 token ids, padded on the right.
      lengths_B: int32 real tokens in each row; 0 for filler rows.
    """

    cells: np.ndarray
    tokens_BT: jax.Array
    lengths_B: jax.Array


class _Pooling(NamedTuple):
    """What a compiled pass depends on beside its arrays."""

    config: EncoderConfig
    runtime: Runtime
    layers: int
    first_gene_token: int
    mode: str


def embed_cells(
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    *,
    mode: str = "cell",
    layer: int = -1,
    runtime: Runtime | None = None,
) -> ad.AnnData:
    """Embeds cells, or the genes in them, with a pretrained model.

    Args:
      model: a pretrained encoder with its vocabulary.
      cells: a cell store (open, or its folder), tokenised cells, an AnnData of raw counts, or an
        h5ad file of raw counts. Counts are tokenised with the model's vocabulary.
      mode: "cell", the mean over the cell's genes, special tokens left out; "cls", the `<cls>`
        token of V2 models; or "gene", for each token its mean over the cells that contain it.
      layer: hidden state to use, counted back from the last: 0 is the last, -1 the one before it
        (the original's choice, more general than the last). Nothing above it is computed.
      runtime: how to compute; float32 by default.

    Returns:
      AnnData without X. Modes "cell" and "cls": one row per cell, in input order and under its id,
      with all its obs columns and float32 `.obsm["X_geneformer"]` [cells, D]; cells without any
      gene of the vocabulary are left out and counted in `.uns["geneformer"]`. Mode "gene": one row
      per token that occurs, under its gene id, with obs columns `symbol` and `n_cells`.

    Raises:
      InputError: there is no such mode or layer, the model has no vocabulary or no `<cls>`, the
        cells were tokenised with another vocabulary or are longer than the model's positions.
    """
    _check_options(model, mode, layer)
    encoded = open_cells(cells, model)
    pooling = _Pooling(
        config=model.config,
        runtime=runtime or Runtime(),
        layers=model.config.layers + layer,
        first_gene_token=encoded.vocabulary.first_gene_token,
        mode=mode,
    )
    embedded = (_embed_genes if mode == "gene" else _embed_rows)(model, encoded, pooling)
    embedded.uns["geneformer"] = {
        "mode": mode,
        "layer": layer,
        "checkpoint": model.source,
        "vocabulary_hash": encoded.vocabulary.hash,
        "precision": pooling.runtime.precision.name,
        "cells": len(encoded.lengths),
        "left_out": dict(getattr(encoded, "dropped", {})),
    }
    return embedded


def open_cells(
    cells: EncodedCells | ad.AnnData | Path | str, model: PretrainedModel
) -> EncodedCells:
    """Opens a cell store, or tokenises counts with the model's vocabulary.

    Raises:
      InputError: the cells cannot be read or do not fit the model.
    """
    _check_vocabulary(model)
    if isinstance(cells, ad.AnnData):
        source = AnnDataSource(cells)
    elif isinstance(cells, str | Path) and (Path(cells).is_file() or is_counts(Path(cells))):
        source = open_counts(cells)
    else:
        encoded = CellStore.open(cells) if isinstance(cells, str | Path) else cells
        _check_cells(encoded, model)
        return encoded
    longest = min(default_max_length(model.vocabulary), model.config.positions)
    return tokenize_source(source, model.vocabulary, Recipe(max_length=longest))


def inference_runtime(
    config: EncoderConfig, longest: int, precision: str = "float32", attention: str = "auto"
) -> tuple[Runtime, str]:
    """Chooses how to compute on this machine.

    Args:
      config: shape of the model.
      longest: tokens of the longest cell to come.
      precision: name of a precision preset.
      attention: name of an attention implementation, or "auto".

    Returns:
      (the runtime, a line that says what was chosen and why).

    Raises:
      InputError: there is no such precision or attention, or it cannot run here.
    """
    preset = precision_preset(precision)
    device = jax.local_devices()[0]
    choice = choose_attention(
        attention,
        platform=device.platform,
        compute_dtype=preset.compute,
        head_size=config.head_size,
        dropout_rate=0.0,
        packed=False,
        positions=longest,
    )
    line = (
        f"device: {device.device_kind}; precision {precision}; "
        f"attention {choice.implementation} ({choice.reason})"
    )
    return Runtime(precision=preset, attention=choice.implementation), line


def token_batches(cells: EncodedCells, positions: int, pad_token: int) -> Iterator[TokenBatch]:
    """Yields every cell once, padded in batches of one bucket, placed on the device.

    Each bucket has one batch shape, so that each compiles once.

    Args:
      cells: tokenised cells.
      positions: longest cell that the model takes; no bucket is longer.
      pad_token: id of `<pad>`.
    """
    lengths = np.asarray(cells.lengths)
    most = min(_MOST_BUCKETS, -(-len(lengths) // _CELLS_PER_BUCKET))
    buckets = choose_buckets(lengths, most)
    buckets = tuple(sorted({min(bucket, positions) for bucket in buckets}))
    in_bucket = np.bincount(np.searchsorted(buckets, lengths), minlength=len(buckets))
    rows = (
        int(np.clip(_TOKENS_PER_BATCH // bucket, 1, max(count, 1)))
        for bucket, count in zip(buckets, in_bucket, strict=True)
    )
    plan = BatchPlan(lengths, BatchShape(buckets, tuple(rows)), seed=0)
    for step in range(plan.steps_per_epoch):
        chosen, bucket = plan.step(step)
        real = chosen[chosen >= 0]
        tokens_BT = np.full((len(chosen), bucket), pad_token, np.int32)
        tokens_BT[: len(real)] = pad_cells(cells.read(real), bucket, pad_token)
        lengths_B = np.zeros(len(chosen), np.int32)
        lengths_B[: len(real)] = lengths[real]
        yield TokenBatch(real, *jax.device_put((tokens_BT, lengths_B)))


def _check_options(model: PretrainedModel, mode: str, layer: int) -> None:
    if mode not in MODES:
        known = ", ".join(MODES)
        raise InputError(
            f'there is no mode "{mode}"{did_you_mean(mode, MODES)}; use one of {known}'
        )
    if not -model.config.layers <= layer <= 0:
        raise InputError(
            f"layer {layer} is not in this model of {model.config.layers} layers; give 0 (the last "
            f"one) down to -{model.config.layers} (the embeddings below the first)"
        )
    if mode == "cls" and model.vocabulary is not None and model.vocabulary.cls_id is None:
        raise InputError(
            'mode "cls" needs a <cls> token, which this model has not (V1 models have none); '
            'use mode "cell"'
        )


def _check_vocabulary(model: PretrainedModel) -> None:
    vocabulary = model.vocabulary
    if vocabulary is None:
        raise InputError(
            f"the model of {model.source} carries no vocabulary; give its own with --vocabulary"
        )
    if vocabulary.size != model.config.vocabulary_size:
        raise InputError(
            f"the vocabulary has {vocabulary.size:,} tokens but the model of {model.source} "
            f"{model.config.vocabulary_size:,}; give the vocabulary it was trained with"
        )


def _check_cells(cells: EncodedCells, model: PretrainedModel) -> None:
    if cells.vocabulary.hash != model.vocabulary.hash:
        raise InputError(
            f"the cells were tokenised with vocabulary {cells.vocabulary.hash[:12]} but the model "
            f"of {model.source} was trained with {model.vocabulary.hash[:12]}: a token would mean "
            "another gene; tokenize the counts with the model's vocabulary"
        )
    if not len(cells.lengths):
        raise InputError("there is no cell to embed; tokenize some first")
    if (longest := int(np.max(cells.lengths))) > model.config.positions:
        raise InputError(
            f"the longest cell has {longest:,} tokens but the model {model.config.positions:,} "
            f"positions; tokenize with --max_length={model.config.positions}"
        )


def _encoded_batches(
    model: PretrainedModel, cells: EncodedCells
) -> Iterator[tuple[TokenBatch, Params]]:
    """Yields each batch with the weights on the device, showing progress."""
    params = jax.device_put(model.params)
    with Progress(len(cells.lengths), "embed", "cells") as progress:
        for batch in token_batches(cells, model.config.positions, model.config.pad_token):
            yield batch, params
            progress.advance(len(batch.cells))


def _embed_rows(model: PretrainedModel, cells: EncodedCells, pooling: _Pooling) -> ad.AnnData:
    """Returns one row per cell, in input order."""
    embeddings = np.empty((len(cells.lengths), model.config.width), np.float32)

    def collect(chosen: np.ndarray, pooled_BD: jax.Array) -> None:
        embeddings[chosen] = jax.device_get(pooled_BD)[: len(chosen)]

    waiting = None
    for batch, params in _encoded_batches(model, cells):
        pooled_BD = _pool(pooling, params, batch.tokens_BT, batch.lengths_B)
        # One batch behind, so that the device computes while the next batch is read.
        if waiting is not None:
            collect(*waiting)
        waiting = batch.cells, pooled_BD
    collect(*waiting)
    return ad.AnnData(obs=cells.obs.copy(), obsm={KEY: embeddings})


@functools.partial(jax.jit, static_argnums=0)
def _pool(
    pooling: _Pooling, params: Params, tokens_BT: jax.Array, lengths_B: jax.Array
) -> jax.Array:
    """Returns one vector per row, float32 [B, D]."""
    hidden_BTD = _hidden(pooling, params, tokens_BT, lengths_B)
    if pooling.mode == "cls":
        return hidden_BTD[:, 0]
    is_gene_BT = _is_real(tokens_BT, lengths_B) & (tokens_BT >= pooling.first_gene_token)
    sums_BD = jnp.einsum("BTD,BT->BD", hidden_BTD, is_gene_BT.astype(jnp.float32))
    return sums_BD / jnp.maximum(is_gene_BT.sum(axis=1), 1)[:, None]


def _embed_genes(model: PretrainedModel, cells: EncodedCells, pooling: _Pooling) -> ad.AnnData:
    """Returns one row per token that occurs: its mean over the cells that contain it."""
    V, D = model.config.vocabulary_size, model.config.width
    sums_VD = jnp.zeros((V, D), jnp.float32)
    cells_V = jnp.zeros(V, jnp.int32)
    for batch, params in _encoded_batches(model, cells):
        sums_VD, cells_V = _add_genes(
            pooling, (sums_VD, cells_V), params, batch.tokens_BT, batch.lengths_B
        )
    sums_VD, cells_V = jax.device_get((sums_VD, cells_V))
    tokens = np.flatnonzero(cells_V)
    obs = pd.DataFrame(
        {"symbol": model.vocabulary.names_of(tokens), "n_cells": cells_V[tokens]},
        index=pd.Index([model.vocabulary.gene_id_of(int(t)) for t in tokens], name="gene_id"),
    )
    return ad.AnnData(obs=obs, obsm={KEY: sums_VD[tokens] / cells_V[tokens, None]})


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_genes(
    pooling: _Pooling,
    totals: tuple[jax.Array, jax.Array],
    params: Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Adds the hidden states of a batch to the sums [V, D] and cell counts [V] of their tokens."""
    sums_VD, cells_V = totals
    hidden_BTD = _hidden(pooling, params, tokens_BT, lengths_B)
    # Pads are sent beyond the table, where additions are dropped.
    rows_BT = jnp.where(_is_real(tokens_BT, lengths_B), tokens_BT, len(cells_V))
    return (
        sums_VD.at[rows_BT].add(hidden_BTD, mode="drop"),
        cells_V.at[rows_BT].add(1, mode="drop"),
    )


def _hidden(
    pooling: _Pooling, params: Params, tokens_BT: jax.Array, lengths_B: jax.Array
) -> jax.Array:
    hidden_BTD = encode(
        pooling.config,
        params,
        tokens_BT,
        lengths_B,
        layers=pooling.layers,
        runtime=pooling.runtime,
    )
    return hidden_BTD.astype(jnp.float32)


def _is_real(tokens_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
    return jnp.arange(tokens_BT.shape[1]) < lengths_B[:, None]
