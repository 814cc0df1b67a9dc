"""Embed cells, or the genes in them, with a pretrained model.

Examples:
  python -m geneformer_jax.embed --checkpoint=RUN --cells=STORE --output=embeddings.h5ad
  python -m geneformer_jax.embed --checkpoint=RUN --cells=cells.h5ad --output=embeddings.h5ad \\
      --color=cell_type --figures

--cells is a store written by `tokenize`, or a file of raw counts, which is tokenised with the
model's vocabulary. The output is AnnData with `.obsm["X_geneformer"]`, cells in input order under
their ids, with all their obs columns. For each column of labels in --color the accuracy of nearest
neighbours is printed, beside that of principal components of the counts and beside chance.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
from absl import flags

from geneformer_jax.cells.counts import CountSource, open_counts
from geneformer_jax.cells.options import configuration
from geneformer_jax.cells.vocabulary import GeneVocabulary
from geneformer_jax.common import door
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import write_aside
from geneformer_jax.common.provenance import describe_run

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", "", "Checkpoint, or workdir of a training run (its newest).")
flags.DEFINE_string("cells", "", "Cell store, or file of raw counts.")
flags.DEFINE_string("output", "", "File to write, ending in .h5ad.")
flags.DEFINE_enum(
    "mode", "cell", ("cell", "cls", "gene"),
    "cell: mean over a cell's genes; cls: its <cls> token (V2 models); gene: each gene's mean over "
    "the cells that have it.",
)  # fmt: skip
flags.DEFINE_integer("layer", -1, "Hidden state, from the last (0); -1 is the one before it.")
flags.DEFINE_string("vocabulary", "", "Vocabulary folder, for a checkpoint that carries none.")
flags.DEFINE_string("color", "", "obs columns for accuracies and figures, separated by commas.")
flags.DEFINE_bool("figures", False, "Draw a UMAP for each --color (PNG and PDF) beside --output.")
flags.DEFINE_string("counts", "", "Raw counts of a store's cells, to compare with their PCA.")
flags.DEFINE_string("precision", "float32", "float32, bfloat16 or float16.")
flags.DEFINE_string("attention", "auto", "Attention implementation; auto chooses for the device.")


def main() -> None:
    """Embeds, reports and writes."""
    door.require("checkpoint", "cells", "output")
    # JAX takes seconds to import, which --help and a mistyped flag should not have to wait for.
    from geneformer_jax.analysis import embedding, embedding_report
    from geneformer_jax.model.pretrained import load_model

    output, columns = Path(FLAGS.output), door.split_list(FLAGS.color)
    _check_request(output)
    model = load_model(FLAGS.checkpoint)
    if FLAGS.vocabulary:
        model = _with_vocabulary(model)
    cells = embedding.open_cells(FLAGS.cells, model)
    embedding_report.check_columns(cells.obs, columns)
    counts = _counts()
    runtime, chosen = embedding.inference_runtime(
        model.config, int(cells.lengths.max()), FLAGS.precision, FLAGS.attention
    )
    print(f"{len(cells.lengths):,} cells, model {model.source}\n{chosen}", flush=True)
    embedded = embedding.embed_cells(
        model, cells, mode=FLAGS.mode, layer=FLAGS.layer, runtime=runtime
    )
    story: dict[str, Any] = {"cells": len(cells.lengths), **embedded.uns["geneformer"]}
    if FLAGS.mode != "gene":
        accuracies = embedding_report.compare_accuracies(embedded, columns, counts)
        print("\n".join(embedding_report.describe_accuracies(accuracies)), flush=True)
        story["label_accuracy"] = {
            column: {name: result._asdict() for name, result in results.items()}
            for column, results in accuracies.items()
        }
    if FLAGS.figures:
        stem = output.with_suffix("")
        for path in embedding_report.draw_umaps(embedded, columns, cells.lengths, stem):
            print(f"figure: {path}")
    _write(embedded, output, story, [FLAGS.cells, *([FLAGS.counts] if FLAGS.counts else [])])
    print(f"embeddings: {output} (.obsm['{embedding.KEY}'], {embedded.n_obs:,} rows)")


def _check_request(output: Path) -> None:
    """Refuses what could only fail after long work."""
    if output.suffix != ".h5ad":
        raise InputError(f"--output={output} must end in .h5ad")
    if output.exists() and _story_of(output).get("configuration") != configuration():
        raise InputError(
            f"{output} is there and was not written by this command; remove it or name another file"
        )
    if FLAGS.mode == "gene" and (FLAGS.color or FLAGS.figures or FLAGS.counts):
        raise InputError("--mode=gene embeds genes: --color, --figures and --counts are for cells")


def _story_of(output: Path) -> dict[str, Any]:
    """Provenance in an earlier output; empty if the file is something else."""
    if not h5py.is_hdf5(output):
        return {}
    with h5py.File(output) as file:
        story = file.get("uns/geneformer/provenance")
        return {} if story is None else json.loads(story.asstr()[()])


def _with_vocabulary(model: Any) -> Any:
    vocabulary = GeneVocabulary.load(FLAGS.vocabulary)
    if model.vocabulary is not None and model.vocabulary.hash != vocabulary.hash:
        raise InputError(
            f"the checkpoint carries vocabulary {model.vocabulary.hash[:12]}, not the "
            f"{vocabulary.hash[:12]} of {FLAGS.vocabulary}; leave --vocabulary out"
        )
    return dataclasses.replace(model, vocabulary=vocabulary)


def _counts() -> CountSource | None:
    """The raw counts of the cells, if they are at hand."""
    if FLAGS.counts:
        return open_counts(FLAGS.counts)
    return open_counts(FLAGS.cells) if Path(FLAGS.cells).is_file() else None


def _write(embedded: Any, output: Path, counts: dict[str, Any], inputs: list[str]) -> None:
    story = describe_run("embed", configuration(), inputs, counts)
    text = json.dumps(story, indent=2, default=str)
    embedded.uns["geneformer"]["provenance"] = text
    with write_aside(output.with_suffix(".provenance.json")) as aside:
        aside.write_text(text + "\n")
    with write_aside(output) as aside:
        embedded.write_h5ad(aside)


if __name__ == "__main__":
    door.run(main)
