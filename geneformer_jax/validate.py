"""Compare perturbations in silico with measured ones, and both with what they must beat.

Examples:
  python -m geneformer_jax.validate --checkpoint=RUN --cells=screen.h5ad --output=validation \\
      --perturbation=target_gene --control=non-targeting
  python -m geneformer_jax.validate --checkpoint=RUN --cells=activation.h5ad --output=validation \\
      --perturbation=gene --control="NT1|NT2" --edit=overexpress
  python -m geneformer_jax.validate --statistics=shifts/statistics/goal_state_shift.parquet \\
      --hits=hits.csv --output=hits_found

--cells holds raw counts of control cells and of cells in each of which one gene was perturbed;
--perturbation names the obs column that says which, by symbol or Ensembl id. Control cells are
edited in silico for each of these genes. Where the cell's embedding moves is compared with where
the measured cells lie, and how far each other gene moves with which genes are expressed
differently. Beside every score stand genes of like rank edited in place of the perturbed one, the
mean over perturbations, and a second half of the measured cells. The output folder holds
tables, named as cell-eval and scPertEval name theirs, figures and a report. Interrupted, the same
command goes on where it stopped.

--hits is a table of genes with `hit` (yes or no) or `score`, or a list of hits. It is compared with
--statistics, a table of goal_state_shift, vs_null or mixture_model that `perturb` wrote, and needs
neither cells nor a model.
"""

from pathlib import Path

from absl import flags

from geneformer_jax.cells.tokenization.flags import (
    define_reading_flags,
    reading_arguments,
    reading_options,
)
from geneformer_jax.common import command_line
from geneformer_jax.common.errors import InputError

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
    "min_cells", 10, "Cells of a perturbation, and edited cells with a gene.", lower_bound=4
)
flags.DEFINE_integer("edited_cells", 200, "Control cells to edit, drawn at random.", lower_bound=1)
flags.DEFINE_integer(
    "like_rank", 3, "Genes of like rank to edit beside each perturbed gene.", lower_bound=1
)
flags.DEFINE_string("hits", "", "Hits of a screen, in place of cells: a table, or a list of genes.")
flags.DEFINE_string("statistics", "", "For --hits: a table of statistics, or what perturb wrote.")
flags.DEFINE_string("score", "", "For --hits: column to order genes by; default: the shift.")
command_line.device_flags()
_NEEDED = ("checkpoint", "cells", "output", "perturbation", "control")
_OPTIONS = ("perturbation", "control", "edit", "hidden_layer", "min_cells", "edited_cells",
            "like_rank", "max_cells", "seed")  # fmt: skip
_HOW = ("precision", "attention", "tokens_per_device")


def main() -> None:
    """Reads the screen, perturbs, compares and writes; or compares with hits."""
    if FLAGS.hits:
        _compare_hits()
        return
    if FLAGS.statistics:
        raise InputError("--statistics is compared with a list of hits; name it by --hits")
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
    model = load_model(**command_line.model_arguments())
    run.prepare(model, FLAGS.cells, **{name: FLAGS[name].value for name in _HOW},
                **reading_arguments())  # fmt: skip
    run.make()
    run.finish()


def _compare_hits() -> None:
    command_line.require("statistics")
    given = [name for name in _NEEDED if name != "output" and FLAGS[name].value]
    if given:
        raise InputError(
            f"--hits is compared with tables, for which --{given[0]} has no meaning; leave it out"
        )
    from geneformer_jax.perturbation.validation.hits.report import write_hits

    how = {name: FLAGS[name].value for name in ("score", "min_cells", "seed")}
    inputs = FLAGS.statistics, FLAGS.hits
    write_hits(Path(FLAGS.output), *inputs, command_line.configuration(), **how)


if __name__ == "__main__":
    of_cells = [name for name in _NEEDED if name != "output"]
    command_line.run(main, _NEEDED, spared={"hits": of_cells, "statistics": of_cells})
