"""Embeds ranges of cells, for results in memory and for files that are written as they come."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd
from jax.sharding import NamedSharding

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.arguments import require_type, require_whole
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.embedding.gene_means import GeneTotals, zero_totals
from geneformer_jax.embedding.pooling import Pass, add_genes, take_states
from geneformer_jax.inference.batches import TokenBatch, lay_out, token_batches
from geneformer_jax.inference.cells import fill_rows, left_out_of, reading_facts
from geneformer_jax.inference.finite import first_not_finite, not_finite
from geneformer_jax.inference.pipeline import Throughput, run_ahead
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime, inference_runtime
from geneformer_jax.model.sharding import BATCH, REPLICATED, inference_mesh

if TYPE_CHECKING:
    import anndata

KEY = "X_geneformer"
MODES = ("cell", "cls", "gene", "occurrence")


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings with what their rows are.

    Attributes:
      rows: float32 [rows, K, D], in each of K layers; may lie in a file.
      table: [rows] what each row is: a cell's obs, or a gene with its counts.
      layers: the K layers, counted back from the last.
      facts: how they came to be.
      name: of the embeddings in an AnnData.
    """

    rows: np.ndarray
    table: pd.DataFrame
    layers: tuple[int, ...]
    facts: Mapping[str, object] = field(default_factory=dict)
    name: str = KEY

    def by_key(self) -> dict[str, np.ndarray]:
        """Returns name -> float32 [rows, D] for each layer."""
        keys = keys_of(self.layers, self.name)
        return {key: np.asarray(self.rows[:, k]) for k, key in enumerate(keys)}

    @property
    def facts_key(self) -> str:
        """Name of the facts in an AnnData: that of the embeddings, if it was chosen."""
        return "geneformer" if self.name == KEY else self.name

    def to_anndata(self) -> anndata.AnnData:
        """Returns AnnData without X: `table` as obs, embeddings in obsm, facts in uns."""
        import anndata

        table = self.table.copy(deep=False)
        table.index = table.index.astype(str)
        facts = {self.facts_key: dict(self.facts)}
        return anndata.AnnData(obs=table, obsm=self.by_key(), uns=facts)

    def with_all(self, obs: pd.DataFrame, rows: np.ndarray) -> Embedded:
        """Returns a row for every cell: NaN for those without an embedding.

        Args:
          obs: [all] per-cell columns.
          rows: [cells] which of them are embedded.
        """
        return replace(self, rows=fill_rows(self.rows, rows, len(obs)), table=obs)

    def add_to(self, adata: anndata.AnnData, rows: np.ndarray) -> None:
        """Adds the embeddings to the obsm, and the facts to the uns, of their cells.

        Args:
          adata: all cells; those without an embedding get NaN.
          rows: [cells] their rows in `adata`.
        """
        if without := adata.n_obs - len(rows):
            logger.warning(
                f"{without:,} of {adata.n_obs:,} cells are left out and have NaN in "
                f'.obsm["{self.name}"]; .uns["{self.facts_key}"] counts the reasons'
            )
        for key, vectors in self.by_key().items():
            adata.obsm[key] = fill_rows(vectors, rows, adata.n_obs)
        adata.uns[self.facts_key] = dict(self.facts)


class Embedder:
    """Embeds ranges of cells, all with the same compiled programs.

    Attributes:
      layers: K layers, counted back from the last.
      offsets: int64 [cells + 1] first row of each cell.
      throughput: of all work so far.
    """

    def __init__(
        self,
        model: PretrainedModel,
        cells: EncodedCells,
        mode: str = "cell",
        hidden_layer: int | Sequence[int] = -1,
        runtime: Runtime | None = None,
        *,
        devices: list[jax.Device] | None = None,
        tokens_per_device: int | None = None,
    ):
        """Lays out the batches and puts the weights on the devices; see `embed_cells`."""
        check_options(model, mode, hidden_layer)
        self.model, self.cells = model, cells
        self.layers = as_layers(hidden_layer)
        mesh = inference_mesh(devices)
        lengths = np.asarray(cells.lengths)
        longest = int(lengths.max(initial=0))
        self.pass_ = Pass(
            config=model.config,
            runtime=runtime or inference_runtime(model.config, longest)[0],
            mesh=mesh,
            layers=tuple(model.config.layers + each for each in self.layers),
            first_gene_token=cells.vocabulary.first_gene_token,
            mode=mode,
        )
        self.layout = lay_out(lengths, model.config, mesh, tokens_per_device)
        self.throughput = Throughput()
        per_cell = lengths if mode == "occurrence" else np.ones(len(lengths), np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(per_cell, dtype=np.int64)])
        encoder = {name: model.params[name] for name in ("embeddings", "blocks")}
        self._params = jax.device_put(encoder, NamedSharding(mesh, REPLICATED))

    def progress(self, description: str = "embed", cells: int | None = None) -> Progress:
        """Returns a progress bar over all cells, or this number of them."""
        return Progress(len(self.cells.lengths) if cells is None else cells, description, "cells")

    def rows(self, start: int, stop: int, progress: Progress) -> np.ndarray:
        """Returns the embeddings of cells `start` to before `stop`, float32 [rows, K, D]."""
        first, last = self.offsets[[start, stop]]
        shape = (last - first, len(self.layers), self.model.config.width)
        rows = np.empty(shape, np.float32)
        batches = token_batches(self.cells, self.layout, start, stop)
        take = functools.partial(self._start, functools.partial(take_states, self.pass_))
        with self.throughput.clock():
            for batch, taken in run_ahead(batches, take):
                self._require_finite(taken, batch.cells)
                progress.advance(len(batch.cells), compiling=self.throughput.compiling)
                if self.pass_.mode != "occurrence":
                    rows[batch.cells - start] = taken[: len(batch.cells)]
                    continue
                for cell, states_TKD in zip(batch.cells, taken, strict=False):
                    begin, end = self.offsets[[cell, cell + 1]] - first
                    rows[begin:end] = states_TKD[: end - begin]
        return rows

    def genes(self, start: int, stop: int, progress: Progress) -> GeneTotals:
        """Returns mean and spread of each token in cells `start` to before `stop`."""
        sizes = len(self.layers), self.model.config.vocabulary_size, self.model.config.width
        mesh = self.pass_.mesh
        empty = jax.tree.map(lambda leaf: np.stack([leaf] * mesh.size), zero_totals(*sizes))
        totals = jax.device_put(empty, NamedSharding(mesh, BATCH))
        with self.throughput.clock():
            for batch in token_batches(self.cells, self.layout, start, stop):
                totals = self._start(functools.partial(add_genes, self.pass_, totals), batch)
                progress.advance(len(batch.cells), compiling=self.throughput.compiling)
            parts = jax.device_get(totals)
        if not all(np.isfinite(each).all() for each in (parts.means, parts.squares)):
            self._find_not_finite(start, stop)
        merged = GeneTotals.empty(*sizes)
        for device in range(mesh.size):
            part = GeneTotals(*(leaf[device].astype(np.float64) for leaf in parts))
            merged = merged.merged(part._replace(cells=part.cells.astype(np.int64)))
        return merged

    def _require_finite(self, taken: np.ndarray, cells: np.ndarray) -> None:
        cell = first_not_finite(taken, cells)
        if cell is not None:
            raise not_finite(cell, self.cells, self.model, self.pass_.runtime.precision)

    def _find_not_finite(self, start: int, stop: int) -> None:
        """Raises InputError for a cell that made the means of genes NaN or infinite."""
        run = functools.partial(take_states, self.pass_._replace(mode="cell"))
        batches = token_batches(self.cells, self.layout, start, stop)
        for batch, taken in run_ahead(batches, functools.partial(self._start, run)):
            self._require_finite(taken, batch.cells)
        raise InputError(
            f"means of genes over cells {start:,} to {stop:,} are beyond float32, though each cell "
            "is not; the model's weights are out of bounds: take an earlier save of it"
        )

    def gene_table(self, totals: GeneTotals) -> Embedded:
        """Returns one row for each token that occurs."""
        vocabulary = self.cells.vocabulary
        tokens = np.flatnonzero(totals.cells)
        columns = {"symbol": vocabulary.names_of(tokens), "n_cells": totals.cells[tokens]}
        for layer, spread in zip(self.layers, totals.spread(), strict=True):
            name = "spread" if len(self.layers) == 1 else f"spread_layer{layer}"
            columns[name] = spread[tokens].astype(np.float32)
        ids = [vocabulary.gene_id_of(int(token)) for token in tokens]
        table = pd.DataFrame(columns, index=pd.Index(ids, name="gene_id"))
        rows = totals.means[:, tokens].swapaxes(0, 1).astype(np.float32)
        return Embedded(rows, table, self.layers, self.facts())

    def table(self) -> pd.DataFrame:
        """Returns what each row is, for modes other than "gene"."""
        if self.pass_.mode != "occurrence":
            return self.cells.obs
        return _occurrences(self.cells)

    def facts(self) -> dict[str, object]:
        """Returns how these embeddings are made."""
        quantization = self.model.quantization
        return {
            "mode": self.pass_.mode,
            "hidden_layer": list(self.layers),
            "checkpoint": self.model.source,
            "vocabulary_hash": self.cells.vocabulary.hash,
            "precision": self.pass_.runtime.precision.name,
            "attention": self.pass_.runtime.attention,
            "quantize": quantization.kind if quantization else "no",
            "cells": len(self.cells.lengths),
            "left_out": left_out_of(self.cells),
            **reading_facts(self.cells),
        }

    def _start(self, run: Callable[..., Any], batch: TokenBatch) -> Any:
        """Starts `run` on a batch, and counts it."""
        with self.throughput.starting(batch.tokens_BT.shape):
            result = run(self._params, batch.tokens_BT, batch.lengths_B)
        tokens = int(np.asarray(self.cells.lengths)[batch.cells].sum())
        self.throughput.add(len(batch.cells), tokens, batch.tokens_BT.size)
        return result


def keys_of(layers: Sequence[int], name: str = KEY) -> list[str]:
    """Returns the name of each layer's embeddings, with the layer where there are several."""
    return [name if len(layers) == 1 else f"{name}_layer{layer}" for layer in layers]


def as_layers(hidden_layer: int | Sequence[int]) -> tuple[int, ...]:
    """Returns one or several layers as a tuple."""
    one = not isinstance(hidden_layer, Iterable)
    return (hidden_layer,) if one else tuple(hidden_layer)


def check_options(model: PretrainedModel, mode: str, hidden_layer: int | Sequence[int]) -> None:
    """Raises InputError if the model does not have such a mode or hidden layer."""
    require_type("mode", mode, str, f"use one of {', '.join(MODES)}")
    if mode not in MODES:
        known = ", ".join(MODES)
        raise InputError(
            f'there is no mode "{mode}"{did_you_mean(mode, MODES)}; use one of {known}'
        )
    if isinstance(hidden_layer, str) or not isinstance(hidden_layer, Iterable):
        require_whole("hidden_layer", hidden_layer)
    layers = as_layers(hidden_layer)
    for each in layers:
        require_whole("hidden_layer", each)
    if not layers or len(set(layers)) < len(layers):
        raise InputError(f"`hidden_layer` {layers} names none, or one twice; name each layer once")
    for each in layers:
        if not -model.config.layers <= each <= 0:
            raise InputError(
                f"`hidden_layer` {each} is not in this model of {model.config.layers} layers; give "
                f"0 (the last one) down to -{model.config.layers} (the embeddings below the first)"
            )
    if mode == "cls" and model.vocabulary is not None and model.vocabulary.cls_id is None:
        raise InputError(
            'mode "cls" needs a <cls> token, which this model does not have (V1 models have none); '
            'use mode "cell"'
        )


def check_all_cells(mode: str, all_cells: bool) -> None:
    """Raises InputError if a row for every cell is asked of embeddings that are not of cells."""
    if all_cells and mode not in ("cell", "cls"):
        raise InputError(
            f'`all_cells` keeps a row for every cell, but `mode` "{mode}" embeds genes; drop it'
        )


def _occurrences(cells: EncodedCells) -> pd.DataFrame:
    """Returns which gene of which cell each row is."""
    lengths = np.asarray(cells.lengths, np.int64)
    tokens = np.concatenate(cells.read(np.arange(len(lengths)))).astype(np.int64)
    cell = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    vocabulary = cells.vocabulary
    present, of_token = np.unique(tokens, return_inverse=True)
    ids = np.array([vocabulary.gene_id_of(int(token)) for token in present], object)
    names = np.asarray(vocabulary.names_of(present), object)
    cell_ids = cells.obs.index.to_numpy()
    return pd.DataFrame(
        {
            "cell_id": cell_ids[cell],
            "gene_id": ids[of_token],
            "symbol": names[of_token],
            "rank": (np.arange(len(tokens)) - starts[cell]).astype(np.int32),
        }
    ).astype({"cell_id": "category", "gene_id": "category", "symbol": "category"})
