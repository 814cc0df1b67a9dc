"""What is asked of embeddings beside the vectors: states, measures and figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_jax.analysis import embedding_report as report
from geneformer_jax.analysis.cell_selection import EncodedCells, check_columns
from geneformer_jax.analysis.embedder import Embedded, Embedder
from geneformer_jax.analysis.embedding_quality import check_labels, describe_quality
from geneformer_jax.analysis.label_accuracy import rows_of
from geneformer_jax.analysis.state_embeddings import QUANTILES, check_states, state_embeddings
from geneformer_jax.cells.counts import CountSource
from geneformer_jax.common.errors import InputError


@dataclass(frozen=True)
class Extras:
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
        self, embedder: Embedder, embedded: Embedded, counts: CountSource | None, stem: Path
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Measures, draws and prints.

        Args:
          embedder: that made the embeddings.
          embedded: the embeddings.
          counts: raw counts of the cells, or None.
          stem: beginning of the names of written files.

        Returns:
          (what to tell in the provenance, further arrays for .obsm).
        """
        story: dict[str, Any] = {}
        arrays: dict[str, np.ndarray] = {}
        written: list[Path] = []
        if self.states:
            path = stem.with_name(stem.name + ".states.parquet")
            state_embeddings(embedded, self.states, self.quantiles).save(path)
            written.append(path)
        if self.color:
            story["label_accuracy"] = self._accuracies(embedded, counts)
        if self.quality:
            story["quality"], drawn = self._quality(embedder, embedded, counts, stem)
            written += drawn
        if self.figures and embedder.pass_.mode == "gene":
            written += report.draw_genes(embedded, self.genes, stem)
        elif self.figures:
            lengths = embedder.cells.lengths
            umaps, positions = report.draw_umaps(embedded, self.color, lengths, stem)
            written += umaps + report.draw_heatmaps(embedded, self.color, stem)
            if positions is not None:
                arrays[report.UMAP_KEY] = positions
        for path in written:
            print(f"written: {path}", flush=True)
        return story, arrays

    def _accuracies(self, embedded: Embedded, counts: CountSource | None) -> dict[str, Any]:
        accuracies = report.compare_accuracies(embedded, self.color, counts)
        for line in report.describe_accuracies(accuracies):
            print(line, flush=True)
        return {
            column: {name: result._asdict() for name, result in results.items()}
            for column, results in accuracies.items()
        }

    def _quality(
        self, embedder: Embedder, embedded: Embedded, counts: CountSource | None, stem: Path
    ) -> tuple[dict[str, Any], list[Path]]:
        tables = report.compare_quality(embedder, embedded, self.quality, self.batch, counts)
        written: list[Path] = []
        for column, table in tables.items():
            print("\n".join(describe_quality(table, column)), flush=True)
            written += report.draw_quality(table, column, len(embedded.table), stem)
        return {column: table.to_dict("index") for column, table in tables.items()}, written
