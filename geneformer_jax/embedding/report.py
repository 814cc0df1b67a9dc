"""What the embed door says and draws of its embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding import comparison, figures
from geneformer_jax.embedding.embedder import Embedded, Embedder
from geneformer_jax.embedding.label_accuracy import FOLDS, NEIGHBOURS
from geneformer_jax.embedding.output import table_path
from geneformer_jax.embedding.quality import check_labels, describe_quality
from geneformer_jax.embedding.states import QUANTILES, check_states, state_embeddings
from geneformer_jax.inference.cells import check_columns
from geneformer_jax.inference.counts import rows_of
from geneformer_jax.reporting.figures import Drawing, save_figure
from geneformer_jax.reporting.html import Report


class Page:
    """The report of a run, and the files that lie beside it.

    Attributes:
      report: to add to.
    """

    def __init__(self, embedder: Embedder, embedded: Embedded, output: Path):
        """Begins the report of `output`."""
        layers = ", ".join(map(str, embedded.layers))
        self.report = Report(
            "Embeddings",
            f"{len(embedded.table):,} rows ({embedder.pass_.mode}), layer {layers} of "
            f"{embedder.model.source}. {embedder.throughput.describe()}.",
        )
        self._output = output
        self._files = [output, table_path(output)] if output.suffix == ".npy" else [output]

    def path(self, ending: str) -> Path:
        """A file beside the output, with another ending."""
        return self._output.with_name(self._output.stem + ending)

    def wrote(self, path: Path) -> None:
        """Tells of a written file."""
        self._files.append(path)
        print(f"written: {path}", flush=True)

    def draw(self, drawing: Drawing) -> None:
        """Writes a figure as PNG and PDF, and shows it."""
        for path in save_figure(drawing.figure, self.path(f"_{drawing.name}")):
            self.wrote(path)
        self.report.figure(drawing.figure, drawing.caption)

    def write(self, story: Mapping[str, Any]) -> None:
        """Writes it, with its story and links to the files."""
        self.report.files([*self._files, self.path(".provenance.json")])
        self.report.provenance(story)
        self.report.write(self.path(".report.html"))


@dataclass(frozen=True)
class EmbeddingReportConfig:
    """What to do with embeddings.

    Attributes:
      states: obs column whose values get state embeddings; "" for none.
      quantiles: of the states.
      color: obs columns for accuracies, UMAPs and heat maps.
      quality: obs columns of labels to measure.
      batch: obs column that should not show, for `quality`; "" for none.
      figures: whether to draw.
      genes: for a figure of gene similarity; () for the commonest.
    """

    states: str = ""
    quantiles: tuple[float, ...] = QUANTILES
    color: tuple[str, ...] = ()
    quality: tuple[str, ...] = ()
    batch: str = ""
    figures: bool = False
    genes: tuple[str, ...] = ()

    def check_mode(self, mode: str) -> None:
        """Raises InputError if embeddings of this mode have no such extras."""
        of_cells = ("states", "color", "quality")
        named = [f"--{name}" for name in of_cells if getattr(self, name)]
        if mode in ("gene", "occurrence") and named:
            raise InputError(f"--mode={mode} embeds genes: {', '.join(named)} are for cells")
        if mode == "occurrence" and self.figures:
            raise InputError("--mode=occurrence has no figures; draw genes with --mode=gene")
        if self.genes and not (mode == "gene" and self.figures):
            raise InputError("--genes names the genes of a figure: give --mode=gene --figures too")
        if self.batch and not self.quality:
            raise InputError("--batch is for --quality; name the labels to measure with it")

    def check_cells(self, cells: EncodedCells, counts: CountSource | None) -> None:
        """Raises InputError if these cells, or their raw counts, do not hold what is asked."""
        obs = cells.obs
        check_columns(obs, [*self.color, *self.quality, *([self.batch] if self.batch else [])])
        for column in self.quality:
            check_labels(obs, column, self.batch)
        if self.states:
            check_states(obs, self.states, self.quantiles)
        if counts is not None and (self.color or self.quality):
            rows_of(counts, obs.index)

    def run(
        self, embedder: Embedder, embedded: Embedded, counts: CountSource | None, page: Page
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Measures, draws and prints.

        Args:
          embedder: that made the embeddings.
          embedded: the embeddings.
          counts: raw counts of the cells, or None.
          page: to which everything is added.

        Returns:
          (what to tell in the provenance, further arrays for .obsm).
        """
        story: dict[str, Any] = {}
        arrays: dict[str, np.ndarray] = {}
        if self.states:
            path = page.path(".states.parquet")
            state_embeddings(embedded, self.states, self.quantiles).save(path)
            page.wrote(path)
        if self.color:
            story["label_accuracy"] = self._accuracies(embedded, counts, page)
        if self.quality:
            story["quality"] = self._quality(embedder, embedded, counts, page)
        if self.figures and embedder.pass_.mode == "gene":
            page.report.section("Genes")
            page.draw(figures.draw_genes(embedded, self.genes))
        elif self.figures:
            page.report.section("Cells")
            umaps, positions = figures.draw_umaps(embedded, self.color, embedder.cells.lengths)
            for drawing in umaps + figures.draw_heatmaps(embedded, self.color):
                page.draw(drawing)
            if positions is not None:
                arrays[figures.UMAP_KEY] = positions
        return story, arrays

    def _accuracies(
        self, embedded: Embedded, counts: CountSource | None, page: Page
    ) -> dict[str, Any]:
        accuracies = comparison.compare_accuracies(embedded, self.color, counts)
        if accuracies:
            print("\n".join(comparison.describe_accuracies(accuracies)), flush=True)
            page.report.section("Labels told apart by nearest neighbours")
            page.report.table(
                comparison.accuracy_table(accuracies),
                f"Accuracy of {NEIGHBOURS} nearest neighbours in {FOLDS} folds; majority: of "
                "always naming the commonest label; shuffled: with labels dealt out at random.",
            )
        return {
            column: {name: result._asdict() for name, result in results.items()}
            for column, results in accuracies.items()
        }

    def _quality(
        self, embedder: Embedder, embedded: Embedded, counts: CountSource | None, page: Page
    ) -> dict[str, Any]:
        tables = comparison.compare_quality(embedder, embedded, self.quality, self.batch, counts)
        for column, table in tables.items():
            lines = describe_quality(table, column)
            print("\n".join(lines), flush=True)
            page.report.section(f"How well {column} shows")
            page.draw(figures.draw_quality(table, column, len(embedded.table)))
            shown = table.rename_axis("representation").reset_index()
            page.report.table(shown, "The same in numbers.")
        return {column: table.to_dict("index") for column, table in tables.items()}
