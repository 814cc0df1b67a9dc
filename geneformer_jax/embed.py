"""Embed cells, or the genes in them, with a pretrained model.

Examples:
  python -m geneformer_jax.embed --checkpoint=RUN --cells=STORE --output=embeddings.h5ad
  python -m geneformer_jax.embed --checkpoint=RUN --cells=cells.h5ad --output=embeddings.h5ad \\
      --color=cell_type --quality=cell_type --figures
  python -m geneformer_jax.embed --checkpoint=RUN --cells=STORE --output=embeddings.parquet \\
      --filter="disease:healthy|mild" --cells_at_most=100000 --states=disease

--cells is a store written by `tokenize`, or a file of raw counts, which is tokenised with the
model's vocabulary. The output is AnnData with `.obsm["X_geneformer"]`, cells in input order under
their ids, with all their obs columns; or, for more cells than fit in memory, a .parquet table or a
.npy array. Interrupted, the same command goes on where it stopped. For each column of labels in
--color the accuracy of nearest neighbours is printed, beside that of principal components of the
counts and beside chance; --quality measures more, beside a model with random weights too. All of
that, with figures and provenance, is in NAME.report.html, which needs no network.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from geneformer_jax.cells.counts.open import open_counts
from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.common import command_line
from geneformer_jax.common.command_line import configuration
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.provenance import describe_run

FLAGS = flags.FLAGS


flags.DEFINE_string("checkpoint", "", "Checkpoint, or workdir of a training run (its newest).")


flags.DEFINE_string("cells", "", "Cell store, or file of raw counts.")


flags.DEFINE_string("output", "", "File to write: .h5ad, .parquet or .npy.")


flags.DEFINE_enum(
    "mode", "cell", ("cell", "cls", "gene", "occurrence"),
    "cell: mean over a cell's genes; cls: its <cls> token (V2 models); gene: each gene's mean over "
    "the cells that have it; occurrence: each gene of each cell.",
)  # fmt: skip


flags.DEFINE_string(
    "layer", "-1", "Hidden state, from the last (0); -1 is the one before it. Several, as in "
    "-1,0, are read off one pass; figures and measures are of the first.",
)  # fmt: skip


flags.DEFINE_string("vocabulary", "", "Vocabulary folder, for a checkpoint that carries none.")


flags.DEFINE_multi_string(
    "filter", [], "column:value|value: only cells with such a value; if repeated, all must pass."
)


flags.DEFINE_integer("cells_at_most", None, "Draw so many of the cells at random.", lower_bound=1)


flags.DEFINE_integer("seed", 42, "Of the draw; 42 draws the cells that the original keeps.")


flags.DEFINE_string(
    "states", "", "obs column: also write the mean, medians and quantiles of each of its values "
    "to NAME.states.parquet, for perturb.",
)  # fmt: skip


flags.DEFINE_string("quantiles", "0.25,0.75", "Of the states, separated by commas.")


flags.DEFINE_string("color", "", "obs columns for accuracies and figures, separated by commas.")


flags.DEFINE_string("quality", "", "obs columns of labels to measure, separated by commas.")


flags.DEFINE_string("batch", "", "obs column that should not show, for --quality (scIB).")


flags.DEFINE_bool(
    "figures", False, "Draw (PNG and PDF) beside --output: UMAP and heat map for each --color; "
    "for --mode=gene the similarity of --genes.",
)  # fmt: skip


flags.DEFINE_string("genes", "", "Genes for the figure, ids or symbols; default: the commonest.")


flags.DEFINE_string("counts", "", "Raw counts of a store's cells, to compare with their PCA.")


flags.DEFINE_string("precision", "float32", "float32, bfloat16 or float16.")


flags.DEFINE_string("attention", "auto", "Attention implementation; auto chooses for the device.")


flags.DEFINE_integer(
    "tokens_per_device", None, "Padded tokens in a batch; default 2,048 on CPUs and 131,072 on "
    "accelerators. Fewer take less memory.", lower_bound=1,
)  # fmt: skip


def main() -> None:
    """Embeds, reports and writes."""
    command_line.require("checkpoint", "cells", "output")
    # JAX takes seconds to import, which --help and a mistyped flag should not have to wait for.
    from geneformer_jax.embedding import embedder
    from geneformer_jax.embedding import output as embedding_output
    from geneformer_jax.embedding.parts import EmbeddingParts
    from geneformer_jax.embedding.report import Page
    from geneformer_jax.inference import cells as inference_cells
    from geneformer_jax.interop.load import load_model
    from geneformer_jax.model import runtime as model_runtime
    from geneformer_jax.model import sharding

    output, layers = Path(FLAGS.output), _numbers("layer", int)
    embedding_output.check_output(output, configuration())
    filters, extras = inference_cells.parse_filters(FLAGS.filter), _extras()
    sharding.use_all_cores()
    model = load_model(FLAGS.checkpoint, FLAGS.vocabulary or None)
    embedder.check_options(model, FLAGS.mode, layers)
    cells = inference_cells.select_cells(
        inference_cells.open_cells(FLAGS.cells, model), filters, FLAGS.cells_at_most, FLAGS.seed
    )
    counts = _counts()
    extras.check_cells(cells, counts)
    runtime, chosen = model_runtime.inference_runtime(
        model.config, int(cells.lengths.max()), FLAGS.precision, FLAGS.attention
    )
    print(f"{len(cells.lengths):,} cells, model {model.source}\n{chosen}", flush=True)
    worker = embedder.Embedder(
        model, cells, FLAGS.mode, layers, runtime, tokens_per_device=FLAGS.tokens_per_device
    )
    parts = EmbeddingParts(output, worker, {"command": configuration()})
    embedded = parts.embed()
    print(worker.throughput.describe(), flush=True)
    page = Page(worker, embedded, output)
    told, arrays = extras.run(worker, embedded, counts, page)
    story = {"throughput": worker.throughput.summary(), **embedded.facts, **told}
    _write(embedded, page, output, story, arrays)
    parts.remove()
    print(f"embeddings: {output} ({', '.join(embedded.by_key())}; {len(embedded.table):,} rows)")


def _extras() -> Any:
    from geneformer_jax.embedding.report import EmbeddingReportConfig

    extras = EmbeddingReportConfig(
        states=FLAGS.states,
        quantiles=tuple(_numbers("quantiles", float)),
        color=tuple(command_line.split_list(FLAGS.color)),
        quality=tuple(command_line.split_list(FLAGS.quality)),
        batch=FLAGS.batch,
        figures=FLAGS.figures,
        genes=tuple(command_line.split_list(FLAGS.genes)),
    )
    extras.check_mode(FLAGS.mode)
    return extras


def _numbers(name: str, kind: type) -> list[Any]:
    """The values of a flag that lists numbers."""
    try:
        return [kind(text) for text in command_line.split_list(FLAGS[name].value)]
    except ValueError:
        raise InputError(
            f"--{name}={FLAGS[name].value} must list numbers, separated by commas"
        ) from None


def _counts() -> CountSource | None:
    """The raw counts of the cells, if they are at hand."""
    if FLAGS.counts:
        return open_counts(FLAGS.counts)
    return open_counts(FLAGS.cells) if Path(FLAGS.cells).is_file() else None


def _write(
    embedded: Any, page: Any, output: Path, counts: dict[str, Any], arrays: dict[str, Any]
) -> None:
    from geneformer_jax.embedding.output import write_output

    inputs = [FLAGS.cells, *([FLAGS.counts] if FLAGS.counts else [])]
    story = describe_run("embed", configuration(), inputs, counts)
    text = json.dumps(story, indent=2, default=str)
    with atomic_write(output.with_suffix(".provenance.json")) as aside:
        aside.write_text(text + "\n")
    write_output(embedded, output, text, **arrays)
    page.write(story)


if __name__ == "__main__":
    command_line.run(main)
