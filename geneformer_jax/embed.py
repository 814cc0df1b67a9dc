"""Embed cells, or the genes in them, with a pretrained model.

Examples:
  python -m geneformer_jax.embed --checkpoint=RUN --cells=STORE --output=embeddings.h5ad
  python -m geneformer_jax.embed --checkpoint=RUN --cells=cells.h5ad --output=embeddings.h5ad \\
      --color=cell_type --quality=cell_type --figures
  python -m geneformer_jax.embed --checkpoint=RUN --cells=STORE --output=embeddings.parquet \\
      --filter="disease:healthy|mild" --max_cells=100000 --states=disease

--cells is a store written by `tokenize`, or a file of raw counts, which is tokenised with the
model's vocabulary. The output is AnnData with `.obsm["X_geneformer"]`, cells in input order under
their ids, with all their obs columns; or, for more cells than fit in memory, a .parquet table or a
.npy array. Interrupted, the same command goes on where it stopped. Several processes share the work
with --shard=i/n; the same command with --finish joins and reports. For each column of labels in
--color the accuracy of nearest neighbours is printed, beside that of principal components of the
counts and beside chance; --quality measures more, beside a model with random weights too. All of
that, with figures and provenance, is in NAME.report.html, which needs no network. With
--with_counts the .h5ad opens in cellxgene; --vitessce writes what Vitessce opens.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from geneformer_jax.cells.tokenization.flags import define_reading_flags, reading_arguments
from geneformer_jax.common import command_line
from geneformer_jax.common.command_line import configuration, split_list
from geneformer_jax.common.shares import PreparedByFlags, SharedRun, run_shared, share_flags

if TYPE_CHECKING:
    from geneformer_jax.embedding.run import EmbeddingRun

FLAGS = flags.FLAGS
NEEDED = ("checkpoint", "cells", "output")

command_line.model_flags()
command_line.cell_flags()
define_reading_flags()
flags.DEFINE_string("output", "", "File to write: .h5ad, .parquet or .npy.")
flags.DEFINE_enum(
    "mode", "cell", ("cell", "cls", "gene", "occurrence"),
    "cell: mean over a cell's genes; cls: its <cls> token (V2 models); gene: each gene's mean over "
    "the cells that have it; occurrence: each gene of each cell.",
)  # fmt: skip
flags.DEFINE_string(
    "hidden_layer", "-1", "Hidden state, from the last (0); -1 is the one before it. Several, as "
    "in -1,0, are read off one pass; figures and measures are of the first.",
)  # fmt: skip
command_line.alias_flag("layer", "hidden_layer")
flags.DEFINE_string(
    "states", "", "obs column: also write the mean, medians and quantiles of each of its values "
    "to NAME.states.parquet, for perturb.",
)  # fmt: skip
flags.DEFINE_string("quantiles", "0.25,0.75", "Of the states, separated by commas.")
flags.DEFINE_string("color", "", "obs columns for accuracies and figures, separated by commas.")
flags.DEFINE_string("quality", "", "obs columns of labels to measure, separated by commas.")
flags.DEFINE_string("batch_key", "", "obs column that should not show, for --quality (scIB).")
flags.DEFINE_bool(
    "figures", False, "Draw (PNG and PDF) beside --output: UMAP and heat map for each --color; "
    "for --mode=gene the similarity of --genes.",
)  # fmt: skip
flags.DEFINE_string("genes", "", "Genes for the figure: names or a file; default: the commonest.")
flags.DEFINE_string("counts", "", "Raw counts of a store's cells, to compare with their PCA.")
flags.DEFINE_bool(
    "all_cells", False, "A row for every cell of the input, with NaN in those that are left out."
)
flags.DEFINE_bool(
    "with_counts", False, "X of the .h5ad: the raw counts by gene, as cellxgene and plots of genes "
    "want them (of a store: those of --counts).",
)  # fmt: skip
flags.DEFINE_string(
    "vitessce", "", "URL at which you will serve the folder NAME.vitessce, such as "
    "http://localhost:8000: write it, with the cells as Zarr and a view config; implies --figures. "
    "npx http-server NAME.vitessce --cors -p 8000 serves it.",
)  # fmt: skip
share_flags()
command_line.device_flags()
_SAME_NAME = ("max_cells", "seed", "precision", "attention", "tokens_per_device")


def main() -> None:
    """Embeds, reports and writes."""
    run_shared(shared_run())


def shared_run() -> SharedRun:
    """Returns the run that the flags ask for."""
    # JAX takes seconds to import, which --help, a mistyped flag and a wrong column should not have
    # to wait for.
    from geneformer_jax.inference.columns import require_columns

    color, quality = split_list(FLAGS.color), split_list(FLAGS.quality)
    named = [*color, *quality, FLAGS.batch_key, FLAGS.states]
    require_columns(FLAGS.cells, named, FLAGS.filter)
    from geneformer_jax.embedding.report import EmbeddingReportConfig
    from geneformer_jax.embedding.run import EmbeddingRun
    from geneformer_jax.inference.listed_genes import read_genes

    report = EmbeddingReportConfig(
        states=FLAGS.states,
        quantiles=tuple(command_line.parse_numbers("quantiles", float)),
        color=tuple(color),
        quality=tuple(quality),
        batch_key=FLAGS.batch_key,
        figures=FLAGS.figures or bool(FLAGS.vitessce),
        genes=tuple(read_genes(FLAGS.genes)),
        with_counts=FLAGS.with_counts,
        vitessce=FLAGS.vitessce,
    )
    layers = command_line.parse_numbers("hidden_layer", int)
    run = EmbeddingRun(
        Path(FLAGS.output), configuration(), report, mode=FLAGS.mode, hidden_layer=layers,
        all_cells=FLAGS.all_cells,
    )  # fmt: skip
    return PreparedByFlags(run, _prepare)


def _prepare(run: "EmbeddingRun") -> None:
    from geneformer_jax.inference.filters import parse_filters
    from geneformer_jax.interop.load import load_model
    from geneformer_jax.model.sharding import use_all_cores

    filters = parse_filters(FLAGS.filter)
    use_all_cores()
    run.prepare(
        load_model(**command_line.model_arguments()),
        FLAGS.cells,
        counts=FLAGS.counts or None,
        filters=filters,
        **{name: FLAGS[name].value for name in _SAME_NAME},
        **reading_arguments(),
    )


if __name__ == "__main__":
    command_line.run(main, needed=NEEDED)
