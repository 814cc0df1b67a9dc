"""Apply a fine-tuned model to new cells.

Examples:
  python -m geneformer_jax.predict --checkpoint=RUN/networks/Geneformer/fold_0 --cells=STORE \\
      --output=predicted.h5ad
  python -m geneformer_jax.predict --checkpoint=FOLD --cells=cells.h5ad --output=predicted.h5ad \\
      --labels_key=cell_type
  python -m geneformer_jax.predict --checkpoint=GENE_FOLD --cells=STORE --output=genes.csv

--cells is a store written by `tokenize`, or a file of raw counts, which is tokenised with the
model's vocabulary. Of cells the output is AnnData in input order: `.obs["predicted_label"]`, its
probability, `.obsm["probabilities_label"]` with the columns `.uns["classes_label"]`; or all of that
as a .parquet or .csv table. Of genes it is a table of their mean over the cells that have them.
With --labels_key predictions are compared with a column of known labels. Interrupted, the same
command goes on where it stopped. Several processes share the work with --shard=i/n; the same
command with --finish joins and writes.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from geneformer_jax.cells.tokenization.flags import define_reading_flags, reading_arguments
from geneformer_jax.common import command_line
from geneformer_jax.common.shares import PreparedByFlags, SharedRun, run_shared, share_flags

if TYPE_CHECKING:
    from geneformer_jax.finetuning.prediction.run import PredictionRun

FLAGS = flags.FLAGS

command_line.model_flags()
flags.DEFINE_string("cells", "", "Cell store, or file of raw counts.")
define_reading_flags()
flags.DEFINE_string("output", "", "File to write: .h5ad (of cells), .parquet or .csv.")
flags.DEFINE_string("labels_key", "", "obs column of known labels, to compare predictions with.")
flags.DEFINE_string("target", "", "Output that --labels_key is of; default: the first of classes.")
flags.DEFINE_bool("all_cells", False, "A row for every cell of the input, with genes or without.")
share_flags()
command_line.device_flags()
NEEDED = ("checkpoint", "cells", "output")


def main() -> None:
    """Predicts, compares and writes."""
    run_shared(shared_run())


def shared_run() -> SharedRun:
    """Returns the run that the flags ask for."""
    # JAX takes seconds to import, which --help, a mistyped flag and a wrong column should not have
    # to wait for.
    from geneformer_jax.inference.columns import require_columns

    require_columns(FLAGS.cells, [FLAGS.labels_key])
    from geneformer_jax.finetuning.prediction.run import PredictionRun

    named = {"labels_key": FLAGS.labels_key, "target": FLAGS.target, "all_cells": FLAGS.all_cells}
    run = PredictionRun(Path(FLAGS.output), command_line.configuration(), **named)
    return PreparedByFlags(run, _prepare)


def _prepare(run: "PredictionRun") -> None:
    from geneformer_jax.interop.load import load_model
    from geneformer_jax.model.config import RuntimeConfig

    run.prepare(
        load_model(**command_line.model_arguments()),
        FLAGS.cells,
        runtime=RuntimeConfig(precision=FLAGS.precision, attention=FLAGS.attention),
        tokens_per_device=FLAGS.tokens_per_device,
        **reading_arguments(),
    )


if __name__ == "__main__":
    command_line.run(main, needed=NEEDED)
