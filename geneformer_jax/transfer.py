"""Carry the labels of a reference over to other cells, without training the model.

Examples:
  python -m geneformer_jax.transfer --checkpoint=RUN --reference=atlas.h5ad --query=new.h5ad \\
      --label=cell_type --group=donor --output=labelled.h5ad

--reference and --query are stores written by `tokenize`, or files of raw counts. Both are embedded;
nearest neighbours, prototypes and logistic regression learn the labels from the embeddings and,
beside them, from principal components of the log counts. The output is AnnData of the query:
`.obs["transferred_label"]`, how far each cell lies from the reference, and whether its label should
be trusted. A report says how well labels of the reference are found again, and, where the query has
the column too, those of the query. Interrupted, the same command goes on where it stopped.
"""

from pathlib import Path

from absl import flags

from geneformer_jax.cells.tokenization.flags import define_reading_flags, reading_arguments
from geneformer_jax.common import command_line

FLAGS = flags.FLAGS

command_line.model_flags()
flags.DEFINE_string("reference", "", "Cells with labels: a cell store, or raw counts.")
flags.DEFINE_string("query", "", "Cells to label: a cell store, or raw counts.")
define_reading_flags()
flags.DEFINE_string("label", "", "obs column of the reference; the query may have it too.")
flags.DEFINE_string(
    "group", "", "obs column of the reference, such as donors: none is in two folds of the scores."
)
flags.DEFINE_string("output", "", "File to write: .h5ad.")
flags.DEFINE_integer("hidden_layer", -1, "Hidden state to use, counted back from the last (0).")
command_line.alias_flag("layer", of="hidden_layer")
command_line.device_flags()
_SAME_NAME = ("hidden_layer", "precision", "attention", "tokens_per_device")


def main() -> None:
    """Embeds both, carries the labels over and writes."""
    # JAX takes seconds to import, which --help, a mistyped flag and a wrong column should not have
    # to wait for.
    from geneformer_jax.inference.columns import require_columns

    require_columns(FLAGS.reference, [FLAGS.label, FLAGS.group])
    from geneformer_jax.interop.load import load_model
    from geneformer_jax.label_transfer.run import TransferRun
    from geneformer_jax.model.sharding import use_all_cores

    run = TransferRun(Path(FLAGS.output), command_line.configuration())
    if run.is_complete():
        print(f"{FLAGS.output} is complete and was written by this command: nothing to do")
        return
    use_all_cores()
    run.prepare(
        load_model(**command_line.model_arguments()),
        FLAGS.reference,
        FLAGS.query,
        FLAGS.label,
        FLAGS.group,
        **{name: FLAGS[name].value for name in _SAME_NAME},
        **reading_arguments(),
    )
    run.make()
    run.finish()


if __name__ == "__main__":
    command_line.run(main, needed=("checkpoint", "reference", "query", "label", "output"))
