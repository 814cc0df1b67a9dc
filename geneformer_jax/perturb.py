"""Perturb genes of cells in silico, and measure how the model's view of the cells shifts.

Examples:
  python -m geneformer_jax.perturb --checkpoint=RUN --cells=STORE --output=shifts --edit=delete
  python -m geneformer_jax.perturb --checkpoint=RUN --cells=cells.h5ad --output=shifts \\
      --edit=overexpress --genes=POU5F1,SOX2,KLF4,MYC --combine=together
  python -m geneformer_jax.perturb --checkpoint=RUN --cells=STORE --output=shifts \\
      --states=disease --start=dilated --goal=healthy --alternatives=hypertrophic

  python -m geneformer_jax.perturb --checkpoint=RUN --cells=STORE --output=screen --screen \\
      --states=disease --start=dilated --goal=healthy --settle=0.05

Edits: delete a gene; overexpress it (to the front of the ranking); inhibit or activate it (down or
up by --ranks or --quantile). --genes=all takes every gene of each cell in turn. The output folder
holds parquet tables, one row for each cell, edit and measure, with a report. Interrupted, the same
command goes on where it stopped. Several processes share the work with --shard=i/n, each writing
its own tables; the same command with --finish puts them together. Of a screen that settles, each
share is run twice: what is settled follows from the estimates of all.

--screen estimates what every deletion does to the cosine with the states (and, with --classes, to
the probabilities), from some 20 encodings of a cell in place of one for each gene; cells with no
more edits than that are made exactly. --settle then makes the strongest of the others exactly too,
and tells how good the estimates are. Its tables have each shift in two parts: all later genes move
up by one position (reranking), and the gene is gone (removal).

--controls sets beside the shifts what they must beat. Most follow from the same tables. reranking
gives exact shifts these two parts too, interpolated in cells with more edits than a screen takes
encodings; it is made with the edits, unasked where it takes at most a tenth of their encodings.
random_weights makes the same edits with a model that has learned nothing, and self_deletion embeds
the states without each of the strongest genes; both once the tables are put together, or later if
the same command asks for them. --dry_run says what all that has to encode.
"""

from pathlib import Path

from absl import flags

from geneformer_jax.cells.tokenization.flags import define_reading_flags, reading_arguments
from geneformer_jax.common import command_line
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.shares import SharedRun, run_shared, share_flags
from geneformer_jax.common.workdir import one_at_a_time

FLAGS = flags.FLAGS
NEEDED = ("checkpoint", "cells", "output")

command_line.model_flags()
command_line.cell_flags()
define_reading_flags()
flags.DEFINE_string("output", "", "Folder to write.")
flags.DEFINE_string("edit", "delete", "delete, overexpress, inhibit or activate.")
flags.DEFINE_string("genes", "all", "all; or ids or symbols, separated by commas, or their file.")
flags.DEFINE_string("combine", "each", "each gene in turn, all together, or all pairs of them.")
flags.DEFINE_string("anchor", "", "Gene that is perturbed together with each of the others.")
flags.DEFINE_string("combinations", "", "File with one set of genes per line, in place of --genes.")
flags.DEFINE_integer("ranks", None, "How far inhibit and activate move a gene.", lower_bound=1)
flags.DEFINE_float("quantile", None, "The same as a fraction of the cell's genes.")
flags.DEFINE_string(
    "truncation", "original", "original: nothing slides in when genes leave; refill: genes from "
    "beyond the model's context do (needs counts, or a store of uncut cells).",
)  # fmt: skip
flags.DEFINE_string(
    "positions", "renumber", "renumber: what follows a deleted gene moves up by one position; "
    "keep: it keeps its position.",
)  # fmt: skip
flags.DEFINE_string("mode", "", "cell: mean over a cell's genes; cls; default: cls where there is.")
flags.DEFINE_integer("hidden_layer", -1, "Hidden state to compare, counted back from the last (0).")
command_line.alias_flag("layer", of="hidden_layer")
flags.DEFINE_string("states", "", "obs column of cell states to measure shifts towards.")
flags.DEFINE_string("start", "", "State whose cells are perturbed; all cells by default.")
flags.DEFINE_string("goal", "", "State that the cells should come nearer to.")
flags.DEFINE_multi_string(
    "alternatives", [], "A further state, or several separated by commas (one that has commas "
    "itself is found as a whole).",
)  # fmt: skip
flags.DEFINE_string("state_embeddings", "", "File of embed --states; computed by default.")
flags.DEFINE_bool("classes", False, "Measure class probabilities (checkpoint of a classifier).")
flags.DEFINE_bool("screen", False, "Estimate all deletions from a few encodings of each cell.")
flags.DEFINE_integer("split_points", 12, "Of a screen: encodings with later genes moved up.")
flags.DEFINE_string(
    "settle", "", "Of a screen: make the strongest exactly, a number or a fraction of the edits "
    "(1.0: all), and a random sample of 200, on which the screen is judged.",
)  # fmt: skip
flags.DEFINE_string("gene_shifts", "none", "Shifts of single genes: none, full, top or means.")
flags.DEFINE_integer("top", 100, "Genes of each edit for --gene_shifts=top.", lower_bound=1)
flags.DEFINE_string("expressing", "", "Only cells with all these genes, separated by commas.")
share_flags()
flags.DEFINE_string(
    "statistics", "auto", "Of the tables, separated by commas: goal_state_shift, vs_null, "
    "mixture_model, aggregate, aggregate_gene_shifts, combinations; auto: goal_state_shift with "
    "states, else aggregate (of at most a million edits); or none. May be asked for later.",
)  # fmt: skip
flags.DEFINE_string(
    "controls", "free", "What is set beside statistics of edits: free, all that need no further "
    "encodings, or few beside the run's own; all; none; or like_rank, cells, coverage, start, "
    "differential_expression, covariance, donors, and with further encodings reranking, "
    "random_weights, self_deletion, separated by commas. For aggregate_gene_shifts: "
    "responsiveness.",
)  # fmt: skip
flags.DEFINE_integer(
    "min_cells", 10, "Of controls: genes edited in fewer cells are not compared.", lower_bound=2
)
flags.DEFINE_string("group", "", "Of controls: obs column of donors, over which shifts must hold.")
flags.DEFINE_string("null", "", "For vs_null: what perturb wrote of other cells.")
flags.DEFINE_bool("dry_run", False, "Say what would be encoded, for controls too, and stop.")
command_line.device_flags()
_AUTO, _NONE = "auto", "none"
_MOST_ROWS = 1_000_000
_HOW = ("precision", "attention", "tokens_per_device", "min_cells")


def main() -> None:
    """Perturbs, writes, and computes statistics."""
    run = shared_run()
    if FLAGS.dry_run:
        run.prepare()
    else:
        run_shared(run)


def shared_run() -> SharedRun:
    """Returns the run that the flags ask for."""
    return _Perturbation()


class _Perturbation:
    """The edits, and what is made of their tables: controls and statistics."""

    def __init__(self) -> None:
        # JAX takes seconds to import, which --help, a mistyped flag and a wrong column should not
        # have to wait for.
        from geneformer_jax.inference.columns import require_columns
        from geneformer_jax.perturbation.config import choose_controls, read_options
        from geneformer_jax.perturbation.controls.choice import require_controls
        from geneformer_jax.perturbation.statistics.modes.choice import require_modes

        self._controls = command_line.split_list(FLAGS.controls)
        require_controls(self._controls, FLAGS.start, FLAGS.goal, FLAGS.group)
        modes, self._given = command_line.split_list(FLAGS.statistics), command_line.configuration()
        require_modes([] if FLAGS.statistics in (_AUTO, _NONE) else modes, FLAGS.null)
        self._output = Path(FLAGS.output)
        options, self._dear = choose_controls(self._controls, read_options(self._given))
        require_columns(FLAGS.cells, [FLAGS.states, FLAGS.group], FLAGS.filter)
        from geneformer_jax.perturbation.run import PerturbationRun

        self._run = PerturbationRun(self._output, options, self._given)

    def is_complete(self) -> bool:
        """Whether all is there; statistics are made anew, as their controls may be others."""
        return self._run.is_complete() and not (self._missing() or _modes(self._output))

    def prepare(self) -> None:
        """Plans the edits, and tells what they and the controls cost."""
        from geneformer_jax.interop.load import load_model
        from geneformer_jax.model.sharding import use_all_cores
        from geneformer_jax.perturbation import model_controls
        from geneformer_jax.perturbation.controls.donors import require_donors

        # First of all, as the provenance of statistics that are made anew names the devices too.
        use_all_cores()
        if self._run.is_complete() and not self._missing() and not FLAGS.dry_run:
            print(f"{FLAGS.output} is complete and was written by this command: nothing to do")
            return
        self._how = model_controls.HowToRun(
            FLAGS.cells, reading=reading_arguments(), **{name: FLAGS[name].value for name in _HOW}
        )
        self._how.plan(self._run, load_model(**command_line.model_arguments()))
        planned = self._run.planned
        require_donors(self._controls, FLAGS.group, planned.plan.cells.obs)
        command_line.show(model_controls.describe_costs(planned, self._dear))

    def make(self, shard: tuple[int, int]) -> bool:
        """Makes the edits of a share."""
        return self._run.is_complete() or self._run.make(shard)

    def finish(self) -> None:
        """Puts the tables together, and makes what is missing of controls and statistics."""
        from geneformer_jax.perturbation import model_controls

        if not self._run.is_complete():
            self._run.finish()
        with one_at_a_time(self._output.with_name(f"{self._output.name}.lock")):
            for name in self._missing():
                model_controls.make_control(name, self._output, self._run, self._given, self._how)
            for mode in _modes(self._output):
                self._make_statistic(mode)

    def _missing(self) -> list[str]:
        from geneformer_jax.perturbation import model_controls

        return model_controls.missing_controls(self._output, self._dear)

    def _make_statistic(self, mode: str) -> None:
        from geneformer_jax.perturbation.statistics.report import perturbation_statistics

        null = FLAGS.null if mode == "vs_null" else ""
        group = FLAGS.group if mode == "goal_state_shift" else ""
        beside = {"controls": self._controls, "min_cells": FLAGS.min_cells, "group": group}
        try:
            written = perturbation_statistics(self._output, mode, null=null, **beside)
        except InputError as error:
            if FLAGS.statistics != _AUTO:
                raise
            print(command_line.as_flags(f"no {mode}: {error}"))
        else:
            print(
                f"{mode}: {len(written)} files in {written[0].parent}; page: {FLAGS.output}/"
                "report.html"
            )


def _modes(output: Path) -> list[str]:
    """Returns the statistics to compute of a finished run."""
    if FLAGS.statistics != _AUTO:
        return [] if FLAGS.statistics == _NONE else command_line.split_list(FLAGS.statistics)
    from geneformer_jax.perturbation.statistics.tables import edits_in

    if FLAGS.states:
        return ["goal_state_shift"]
    # It holds a row for each edit in each cell, also as text.
    return ["aggregate"] if edits_in(output) <= _MOST_ROWS else []


if __name__ == "__main__":
    command_line.run(main, needed=NEEDED)
