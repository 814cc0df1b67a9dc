"""What is measured and drawn of embeddings, with the report of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import suffix_of
from geneformer_jax.common.log import logger
from geneformer_jax.embedding import comparison, figures
from geneformer_jax.embedding.embedder import Embedded, Embedder
from geneformer_jax.embedding.label_accuracy import FOLDS, NEIGHBOURS, frequent_labels
from geneformer_jax.embedding.output import report_path, table_path
from geneformer_jax.embedding.quality import check_labels, conclude_quality, describe_quality
from geneformer_jax.embedding.states import QUANTILES, check_states, state_embeddings
from geneformer_jax.inference.columns import check_columns
from geneformer_jax.inference.counts import rows_of
from geneformer_jax.inference.filters import is_number
from geneformer_jax.inference.finite import require_finite
from geneformer_jax.inference.listed_genes import (
    describe_missing,
    find_genes,
    name_missing,
)
from geneformer_jax.reporting.figures import Drawing, save_figure
from geneformer_jax.reporting.html import Report
from geneformer_jax.reporting.index import refresh_index
from geneformer_jax.reporting.left_out import add_left_out


@dataclass(frozen=True)
class EmbeddingReportConfig:
    """What to measure and draw of embeddings.

    Attributes:
      states: obs column whose values get state embeddings; "" for none.
      quantiles: of the states.
      color: obs columns for accuracies, UMAPs and heat maps.
      quality: obs columns of labels to measure.
      batch_key: obs column that should not show, for `quality`; "" for none.
      figures: whether to draw.
      genes: for a figure of gene similarity; () for the commonest.
      with_counts: whether the output, an .h5ad, gets the cells' raw counts as X.
      vitessce: URL under which browsers will find the folder NAME.vitessce, which is then written;
        "" for none. It has the UMAP of the figures.
    """

    states: str = ""
    quantiles: tuple[float, ...] = QUANTILES
    color: tuple[str, ...] = ()
    quality: tuple[str, ...] = ()
    batch_key: str = ""
    figures: bool = False
    genes: tuple[str, ...] = ()
    with_counts: bool = False
    vitessce: str = ""

    def check_mode(self, mode: str) -> None:
        """Raises InputError if embeddings of this mode cannot be measured or drawn so."""
        of_cells = ("states", "color", "quality", "with_counts", "vitessce")
        named = [f"`{name}`" for name in of_cells if getattr(self, name)]
        if mode in ("gene", "occurrence") and named:
            raise InputError(f"`mode` {mode} embeds genes: {', '.join(named)} are for cells")
        if mode == "occurrence" and self.figures:
            raise InputError("`mode` occurrence has no figures; draw genes with `mode` gene")
        if self.genes and not (mode == "gene" and self.figures):
            raise InputError(
                "`genes` names the genes of a figure: give `mode` gene and `figures` too"
            )
        if self.vitessce and not self.vitessce.startswith(("http://", "https://")):
            raise InputError(
                f"`vitessce` {self.vitessce} is no URL; give where the folder will be served, such "
                "as http://localhost:8000"
            )
        if self.batch_key and not self.quality:
            raise InputError("`batch_key` is for `quality`; name the labels to measure with it")

    def check_cells(self, cells: EncodedCells, counts: CountSource | None) -> None:
        """Raises InputError if these cells, or their raw counts, do not hold what is asked."""
        obs = cells.obs
        check_columns(
            obs, [*self.color, *self.quality, *([self.batch_key] if self.batch_key else [])]
        )
        for column in self.color:
            if not is_number(obs[column]):
                frequent_labels(obs[column])
        for column in self.quality:
            check_labels(obs, column, self.batch_key)
        if self.with_counts and counts is None:
            raise InputError(
                "`with_counts` needs the raw counts of the store's cells: give `counts`"
            )
        if self.states:
            check_states(obs, self.states, self.quantiles)
        if self.genes:
            found = find_genes(cells.vocabulary, self.genes)
            figures.check_number(len(found.tokens), found.unknown)
        from_counts = self.color or self.quality or self.with_counts or self.vitessce
        if counts is not None and from_counts:
            rows_of(counts, obs.index)


class EmbeddingReport:
    """The report of a run, and the files that lie beside its output.

    Attributes:
      arrays: key -> [cells, ...], further arrays for .obsm.
    """

    def __init__(
        self,
        config: EmbeddingReportConfig,
        embedder: Embedder,
        embedded: Embedded,
        counts: CountSource | None,
        output: Path,
    ):
        """Begins a report.

        Args:
          config: what to measure and draw.
          embedder: that made the embeddings.
          embedded: the embeddings.
          counts: raw counts of the cells, or None.
          output: the file of the embeddings.
        """
        self._config, self._embedder, self._embedded = config, embedder, embedded
        self._counts, self._output = counts, output
        self.arrays: dict[str, np.ndarray] = {}
        self._files = [output, table_path(output)] if suffix_of(output) == ".npy" else [output]
        layers = ", ".join(map(str, embedded.layers))
        self._report = Report(
            "Embeddings",
            f"{len(embedded.table):,} rows ({embedder.pass_.mode}), hidden layer {layers} of "
            f"{embedder.model.source}.",
        )

    def make(self) -> dict[str, Any]:
        """Measures and draws; returns the measures for the provenance.

        Raises:
          InputError: an embedding that would be measured or drawn holds NaN or infinity.
        """
        config, summary = self._config, {}
        if config.states or config.color or config.quality or config.figures:
            require_finite(self._embedded.rows, self._embedded.table.index)
        if config.states:
            states = state_embeddings(self._embedded, config.states, config.quantiles)
            states.save(path := self._beside(".states.parquet"))
            self._add_file(path)
        if config.color:
            summary["label_accuracy"] = self._measure_accuracies()
        if config.quality:
            summary["quality"] = self._measure_quality()
        if config.figures and self._embedder.pass_.mode == "gene":
            summary["genes_left_out"] = self._draw_genes()
        elif config.figures:
            self._draw_cells()
        return summary

    def write(self, provenance: Mapping[str, Any]) -> None:
        """Writes NAME.report.html, with what was left out, the provenance and the files."""
        add_left_out(self._report, provenance["counts"])
        self._report.files([*self._files, self._beside(".provenance.json")])
        self._report.provenance(provenance)
        self._report.write(report_path(self._output))
        refresh_index(self._output)

    def _measure_accuracies(self) -> dict[str, Any]:
        accuracies = comparison.compare_accuracies(self._embedded, self._config.color, self._counts)
        if accuracies:
            logger.info("\n".join(comparison.describe_accuracies(accuracies)))
            for sentence in comparison.conclude_accuracies(accuracies):
                self._report.conclude(sentence)
            self._report.section("Labels told apart by nearest neighbours")
            self._report.table(
                comparison.accuracy_table(accuracies),
                f"Accuracy of {NEIGHBOURS} nearest neighbours in {FOLDS} folds; majority: of "
                "always naming the commonest label; shuffled: with labels assigned at random.",
            )
        return {
            column: {name: result._asdict() for name, result in results.items()}
            for column, results in accuracies.items()
        }

    def _measure_quality(self) -> dict[str, Any]:
        config = self._config
        tables = comparison.compare_quality(
            self._embedder, self._embedded, config.quality, config.batch_key, self._counts
        )
        for column, table in tables.items():
            logger.info("\n".join(describe_quality(table, column)))
            self._report.conclude(conclude_quality(table, column))
            self._report.section(f"How well {column} shows")
            self._draw(figures.draw_quality(table, column, len(self._embedded.table)))
            shown = table.rename_axis("representation").reset_index()
            self._report.table(shown, "The same in numbers.")
        return {column: table.to_dict("index") for column, table in tables.items()}

    def _draw_genes(self) -> list[dict[str, str]]:
        """Draws the named genes, or the commonest; returns those left out, see `name_missing`."""
        rows, missing = figures.commonest_genes(self._embedded.table), []
        if self._config.genes:
            rows, missing = self._named_genes()
        self._report.section("Genes")
        for line in describe_missing(missing):
            logger.warning(line)
            self._report.paragraph(f"{line}.")
        if len(rows) < figures.MIN_GENES:
            logger.warning("fewer than two of the genes have an embedding: no figure is drawn")
        else:
            self._draw(figures.draw_genes(self._embedded, rows, named=bool(self._config.genes)))
        genes = figures.gene_table(self._embedded)
        if len(genes):
            self._draw(figures.draw_spread(genes))
            self._report.table(
                genes,
                "Genes with an embedding: in how many cells, the root mean square distance of "
                "their states there from the embedding, and the genes of the highest cosine.",
                name=figures.GENES,
                key="gene_id",
                words={"gene_id": "gene id", "n_cells": "cells"},
            )
        return missing

    def _named_genes(self) -> tuple[np.ndarray, list[dict[str, str]]]:
        """Returns rows of the named genes that cells have, and the other genes."""
        vocabulary, index = self._embedder.cells.vocabulary, self._embedded.table.index
        found = find_genes(vocabulary, self._config.genes)
        rows = index.get_indexer([vocabulary.gene_id_of(token) for token in found.tokens])
        absent = [token for token, row in zip(found.tokens, rows, strict=True) if row < 0]
        return rows[rows >= 0], name_missing(vocabulary, found.unknown, absent)

    def _draw_cells(self) -> None:
        self._report.section("Cells")
        embedded, color = self._embedded, self._config.color
        umaps, positions = figures.draw_umaps(embedded, color, self._embedder.cells.lengths)
        for drawing in umaps:
            self._draw(drawing)
        cells = figures.drawn_cells(embedded, color, self._embedder.cells.lengths)
        caption = "Cells of the figures. Choose some there to see and download only them."
        self._report.table(cells, caption, name=figures.CELLS, key="cell")
        for drawing in figures.draw_heatmaps(embedded, color):
            self._draw(drawing)
        if positions is not None:
            self.arrays[figures.UMAP_KEY] = positions

    def _draw(self, drawing: Drawing) -> None:
        """Writes a figure as PNG and PDF, and shows it."""
        for path in save_figure(drawing.figure, self._beside(f"_{drawing.name}")):
            self._add_file(path)
        self._report.draw(drawing)

    def _add_file(self, path: Path) -> None:
        self._files.append(path)
        logger.info("written: %s", path)

    def _beside(self, ending: str) -> Path:
        """A file beside the output, with another ending."""
        return self._output.with_name(self._output.stem + ending)
