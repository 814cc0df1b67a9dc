"""Compare perturbations in silico with measured ones, and both with what they must beat.

Examples:
  python -m geneformer_jax.validate --checkpoint=RUN --cells=screen.h5ad --output=validation \\
      --perturbation=target_gene --control=non-targeting
  python -m geneformer_jax.validate --checkpoint=RUN --cells=activation.h5ad --output=validation \\
      --perturbation=gene --control="NT1|NT2" --edit=overexpress

--cells holds raw counts of control cells and of cells in each of which one gene was perturbed;
--perturbation names the obs column that says which, by symbol or Ensembl id. Control cells are
edited in silico for each of these genes. Where the cell's embedding moves is compared with where
the measured cells lie, and how far each other gene moves with which genes are expressed
differently. Beside every score stand genes of like rank edited in place of the perturbed one, the
mean over the other perturbations, and a second half of the measured cells. The output folder holds
tables, named as cell-eval and scPertEval name theirs, figures and a report. Interrupted, the same
command goes on where it stopped.
"""

from pathlib import Path

from absl import flags

from geneformer_jax.cells.tokenization.flags import (
    define_reading_flags,
    reading_arguments,
    reading_options,
)
from geneformer_jax.common import command_line

FLAGS = flags.FLAGS

command_line.model_flags()
command_line.cell_flags()
define_reading_flags()
flags.DEFINE_string("output", "", "Folder to write.")
flags.DEFINE_string("perturbation", "", "obs column of the perturbed gene, symbol or Ensembl id.")
flags.DEFINE_string("control", "", "Label of the control cells there; several as A|B.")
flags.DEFINE_string("edit", "delete", "delete or overexpress.")
flags.DEFINE_string("mode", "", "cell: mean over a cell's genes; cls; default: cls where there is.")
flags.DEFINE_integer("hidden_layer", -1, "Hidden state to compare, counted back from the last (0).")
command_line.alias_flag("layer", of="hidden_layer")
flags.DEFINE_integer(
    "min_cells", 10, "Cells of a perturbation, and edited cells with its gene.", lower_bound=4
)
flags.DEFINE_integer("edited_cells", 200, "Control cells to edit, drawn at random.", lower_bound=1)
flags.DEFINE_integer(
    "like_rank", 3, "Genes of like rank to edit beside each perturbed gene.", lower_bound=1
)
command_line.device_flags()
_OPTIONS = ("perturbation", "control", "edit", "hidden_layer", "min_cells", "edited_cells",
            "like_rank", "max_cells", "seed")  # fmt: skip
_HOW = ("precision", "attention", "tokens_per_device")


def main() -> None:
    """Reads the screen, perturbs, compares and writes."""
    # JAX takes seconds to import, which --help, a mistyped flag and a wrong label should not have
    # to wait for.
    from geneformer_jax.inference.columns import require_columns
    from geneformer_jax.inference.filters import parse_filters
    from geneformer_jax.perturbation.validation.config import ValidationOptions
    from geneformer_jax.perturbation.validation.screen.screen_file import require_screen

    given = {name: FLAGS[name].value for name in _OPTIONS}
    options = ValidationOptions(
        **given, mode=FLAGS.mode or None, filters=parse_filters(FLAGS.filter)
    )
    require_columns(FLAGS.cells, [FLAGS.perturbation], FLAGS.filter)
    require_screen(FLAGS.cells, options, reading_options())
    from geneformer_jax.interop.load import load_model
    from geneformer_jax.model.sharding import use_all_cores
    from geneformer_jax.perturbation.validation.run import ValidationRun

    run = ValidationRun(Path(FLAGS.output), options, command_line.configuration())
    if run.is_complete():
        print(f"{FLAGS.output} is complete and was written by this command: nothing to do")
        return
    use_all_cores()
    model = load_model(FLAGS.checkpoint, FLAGS.vocabulary or None)
    run.prepare(model, FLAGS.cells, **{name: FLAGS[name].value for name in _HOW},
                **reading_arguments())  # fmt: skip
    run.make()
    run.finish()


if __name__ == "__main__":
    command_line.run(main, needed=("checkpoint", "cells", "output", "perturbation", "control"))
