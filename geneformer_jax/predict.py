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
With --labels_key predictions are compared with a column of known labels.
"""

from pathlib import Path

from absl import flags

from geneformer_jax.cells.tokenization.flags import define_reading_flags, reading_arguments
from geneformer_jax.common import command_line
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.provenance import describe_run, require_own_provenance

FLAGS = flags.FLAGS
NEEDED = ("checkpoint", "cells", "output")

command_line.model_flags()
flags.DEFINE_string("base", "", "For an adapter: the model it was trained on, if that has moved.")
flags.DEFINE_string("cells", "", "Cell store, or file of raw counts.")
define_reading_flags()
flags.DEFINE_string("output", "", "File to write: .h5ad (of cells), .parquet or .csv.")
flags.DEFINE_string("labels_key", "", "obs column of known labels, to compare predictions with.")
flags.DEFINE_string("target", "", "Output that --labels_key is of; default: the first of classes.")
flags.DEFINE_bool("all_cells", False, "A row for every cell of the input, with genes or without.")
command_line.device_flags()
_SUFFIXES = (".h5ad", ".parquet", ".csv")


def main() -> None:
    """Predicts, compares and writes."""
    output = Path(FLAGS.output)
    if output.suffix not in _SUFFIXES:
        raise InputError(f"--output={output} must end in one of {', '.join(_SUFFIXES)}")
    if output.exists():
        raise InputError(f"--output={output} exists and nothing is overwritten; name another file")
    require_own_provenance(output)
    # JAX takes seconds to import, which --help, a mistyped flag and a wrong column should not have
    # to wait for.
    from geneformer_jax.inference.columns import require_columns

    require_columns(FLAGS.cells, [FLAGS.labels_key])
    from geneformer_jax.cells.tokenization.quality_control import describe_left_out
    from geneformer_jax.finetuning import predict
    from geneformer_jax.inference.cells import left_out_of, reading_facts
    from geneformer_jax.interop.load import load_model
    from geneformer_jax.model.config import RuntimeConfig
    from geneformer_jax.model.heads import CELLS, GENES

    model = load_model(FLAGS.checkpoint, FLAGS.vocabulary or None, base=FLAGS.base or None)
    runtime = RuntimeConfig(precision=FLAGS.precision, attention=FLAGS.attention)
    how = {"runtime": runtime, "tokens_per_device": FLAGS.tokens_per_device}
    if model.head is not None and model.head.kind == GENES:
        if output.suffix == ".h5ad" or FLAGS.labels_key:
            raise InputError(
                f"the model of {model.source} classifies genes; write a .parquet or .csv table, "
                "without --labels_key"
            )
        cells = predict.open_cells_for(model, FLAGS.cells, GENES, **reading_arguments())
        predicted, unit = predict.predict_genes(model, cells, **how), "genes"
    else:
        cells = predict.open_cells_for(model, FLAGS.cells, CELLS, **reading_arguments())
        if FLAGS.labels_key:
            task = predict.find_output(model, FLAGS.target)
            known = predict.check_labels(cells.obs, FLAGS.labels_key, task)
        predicted = predict.predict_cells(model, cells, **how, all_cells=FLAGS.all_cells)
        unit = "cells"
        if FLAGS.labels_key:
            command_line.show(predict.compare_with_labels(predicted, known, task))
    left_out = left_out_of(cells)
    command_line.show(describe_left_out(left_out))
    counts = {unit: len(predicted), "left_out": left_out, **reading_facts(cells)}
    facts = describe_run("predict", command_line.configuration(), [FLAGS.cells], counts)
    predict.write_predicted(predicted, output, facts)
    print(f"predictions: {output} ({len(predicted):,} {unit})")


if __name__ == "__main__":
    command_line.run(main, needed=NEEDED)
