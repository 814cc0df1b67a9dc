"""Summarise what the attention heads of a pretrained model attend to.

Examples:
  python -m geneformer_jax.attend --checkpoint=RUN --cells=STORE --output=attention \\
      --genes=transcription_factors.txt --control=random
  python -m geneformer_jax.attend --checkpoint=RUN --cells=cells.h5ad --output=attention \\
      --genes=n1_network.tsv --groupby=cell_type --max_cells=2000

For every layer and head: how much attention the genes of a list receive beside all others, and
beside genes of like rank; attention by rank; how diverse and how broad the heads of a layer are;
and per group of cells the genes attended beyond what rank explains. --genes names files, separated
by commas: ids or symbols, one on each line, or a table with a column of classes, each of which is a
list. The output is a folder of tables with one report.html. Interrupted, the same command goes on
where it stopped. Several processes share the work with --shard=i/n; the same command with --finish
joins and reports.
"""

from absl import flags

from geneformer_jax.cells.tokenization.flags import define_reading_flags, reading_arguments
from geneformer_jax.common import command_line
from geneformer_jax.common.command_line import configuration
from geneformer_jax.common.shares import SharedRun, run_shared, share_flags

FLAGS = flags.FLAGS
NEEDED = ("checkpoint", "cells", "output", "genes")

command_line.model_flags()
command_line.cell_flags()
define_reading_flags()
flags.DEFINE_string("output", "", "Folder to write.")
flags.DEFINE_string("genes", "", "Files with gene lists, separated by commas.")
flags.DEFINE_string("pairs", "", "Genes (ids or symbols), or a file: the weights between them.")
flags.DEFINE_string("groupby", None, "obs column: summarise each of its values apart too.")
flags.DEFINE_enum("control", "none", ("none", "random"), "Extract the same from random weights.")
flags.DEFINE_string("layers", "", "Limit the tables of genes and pairs to these, as in 1,6.")
flags.DEFINE_string("heads", "", "Limit the tables of genes and pairs to these, as in 1,2.")
flags.DEFINE_integer(
    "min_cells", 10, "Cells that a group must have, and a gene that is compared.", lower_bound=2
)
share_flags()
command_line.device_flags()
_SAME_NAME = ("max_cells", "seed", "precision", "attention", "tokens_per_device")


def main() -> None:
    """Extracts attention, tests and reports."""
    run_shared(shared_run())


def shared_run() -> SharedRun:
    """Returns the run that the flags ask for."""
    return _Attention()


class _Attention:
    """The attention, and what is printed of it."""

    def __init__(self) -> None:
        # JAX takes seconds to import, which --help, a mistyped flag and a wrong column should not
        # have to wait for.
        from geneformer_jax.inference.columns import require_columns

        require_columns(FLAGS.cells, [FLAGS.groupby], FLAGS.filter)
        from geneformer_jax.attention_analysis import api
        from geneformer_jax.attention_analysis.run import AttentionRun

        query = api.AttentionQuery(
            lists=api.read_gene_lists(FLAGS.genes),
            groupby=FLAGS.groupby,
            pairs=api.read_pairs(FLAGS.pairs),
            control=FLAGS.control == "random",
            min_cells=FLAGS.min_cells,
        )
        limits = {name: command_line.parse_numbers(name, int) for name in ("layers", "heads")}
        self._run = AttentionRun(FLAGS.output, query, configuration(), **limits)
        self.is_complete, self.make = self._run.is_complete, self._run.make

    def prepare(self) -> None:
        """Readies the model and the cells."""
        from geneformer_jax.inference.filters import parse_filters
        from geneformer_jax.interop.load import load_model
        from geneformer_jax.model.sharding import use_all_cores

        filters = parse_filters(FLAGS.filter)
        use_all_cores()
        self._run.prepare(
            load_model(**command_line.model_arguments()),
            FLAGS.cells,
            filters=filters,
            **{name: FLAGS[name].value for name in _SAME_NAME},
            **reading_arguments(),
        )

    def finish(self) -> None:
        """Writes tables and report, and prints the answers."""
        from geneformer_jax.attention_analysis import report
        from geneformer_jax.attention_analysis.summary import answers, preferring

        found = self._run.finish()
        print(preferring(found).to_string(index=False))
        print(found.statements.to_string(index=False))
        command_line.show(answers(found))
        print(f"report: {FLAGS.output}/{report.REPORT}")


if __name__ == "__main__":
    command_line.run(main, needed=NEEDED)
