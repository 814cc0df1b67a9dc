"""Find what the attention heads of a pretrained model look at.

Examples:
  python -m geneformer_jax.attend --checkpoint=RUN --cells=STORE --output=attention \\
      --genes=transcription_factors.txt --control=random
  python -m geneformer_jax.attend --checkpoint=RUN --cells=cells.h5ad --output=attention \\
      --genes=n1_network.tsv --group_by=cell_type --cells_at_most=2000

For every layer and head: how much attention the genes of a list receive beside all others, and
beside genes of like rank; attention by rank; how diverse and how broad the heads of a layer are;
and per group of cells the genes attended beyond what rank explains. --genes names files, separated
by commas: ids or symbols, one on each line, or a table with a column of classes, each of which is a
list. The output is a folder of tables with one report.html. Interrupted, the same command goes on
where it stopped.
"""

from absl import flags

from geneformer_jax.common import command_line
from geneformer_jax.common.command_line import configuration
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import remove, require_new_folder
from geneformer_jax.common.provenance import describe_run

FLAGS = flags.FLAGS


flags.DEFINE_string("checkpoint", "", "Checkpoint, or workdir of a training run (its newest).")


flags.DEFINE_string("cells", "", "Cell store, or file of raw counts.")


flags.DEFINE_string("output", "", "Folder to write.")


flags.DEFINE_string("genes", "", "Files with gene lists, separated by commas.")


flags.DEFINE_string("pairs", "", "Genes (ids or symbols), or a file: the weights between them.")


flags.DEFINE_string("group_by", None, "obs column: look at each of its values apart too.")


flags.DEFINE_enum("control", "none", ("none", "random"), "Ask the same of random weights.")


flags.DEFINE_string("layers", "", "Limit the tables of genes and pairs to these, as in 1,6.")


flags.DEFINE_string("heads", "", "Limit the tables of genes and pairs to these, as in 1,2.")


flags.DEFINE_integer(
    "least_cells", 10, "Cells that a group must have, and a gene that is compared.", lower_bound=2
)


flags.DEFINE_string("vocabulary", "", "Vocabulary folder, for a checkpoint that carries none.")


flags.DEFINE_multi_string(
    "filter", [], "column:value|value: only cells with such a value; if repeated, all must pass."
)


flags.DEFINE_integer("cells_at_most", None, "Draw so many of the cells at random.", lower_bound=1)


flags.DEFINE_integer("seed", 42, "Of the draw; 42 draws the cells that the original keeps.")


flags.DEFINE_string("precision", "float32", "float32, bfloat16 or float16.")


flags.DEFINE_string("attention", "auto", "xla, chunked, by_head, or auto.")


flags.DEFINE_integer(
    "tokens_per_device", None, "Padded tokens in a batch; fewer take less memory.", lower_bound=1
)


def main() -> None:
    """Attends, tests and reports."""
    command_line.require("checkpoint", "cells", "output", "genes")
    # JAX takes seconds to import, which --help and a mistyped flag should not have to wait for.
    from geneformer_jax.attention_analysis import api, report
    from geneformer_jax.attention_analysis.parts import attend_in_parts, begin
    from geneformer_jax.inference import cells as inference_cells
    from geneformer_jax.interop.load import load_model
    from geneformer_jax.model import runtime as model_runtime
    from geneformer_jax.model.sharding import use_all_cores

    output = require_new_folder(FLAGS.output)
    filters = inference_cells.parse_filters(FLAGS.filter)
    question = api.AttentionQuery(
        lists=api.read_gene_lists(FLAGS.genes),
        group_by=FLAGS.group_by,
        pairs=api.read_pairs(FLAGS.pairs),
        control=FLAGS.control == "random",
        least_cells=FLAGS.least_cells,
    )
    use_all_cores()
    model = load_model(FLAGS.checkpoint, FLAGS.vocabulary or None)
    only = {
        "layer": _numbers("layers", model.config.layers),
        "head": _numbers("heads", model.config.heads),
    }
    cells = inference_cells.select_cells(
        inference_cells.open_cells(FLAGS.cells, model), filters, FLAGS.cells_at_most, FLAGS.seed
    )
    runtime, chosen = model_runtime.profiled_runtime(
        int(cells.lengths.max()), FLAGS.precision, FLAGS.attention
    )
    attenders = api.prepare(
        model, cells, question, runtime, tokens_per_device=FLAGS.tokens_per_device
    )
    print(f"{len(cells.lengths):,} cells, model {model.source}\n{chosen}", flush=True)
    parts = begin(output, attenders, configuration())
    attended = attend_in_parts(attenders, parts)
    attender = attenders[api.MODEL]
    found = api.answer(question, attender, attended)
    counts = {"cells": len(cells.lengths), "left_out": dict(cells.dropped)}
    story = describe_run("attend", configuration(), [FLAGS.cells], counts)
    report.write_report(found, attender, output, story, only)
    remove(parts)
    print(report.preferring(found).to_string(index=False))
    print(found.statements.to_string(index=False))
    print(f"report: {output / report.REPORT}")


def _numbers(name: str, most: int) -> tuple[int, ...]:
    """The values of --layers or --heads, which count from 1."""
    text = command_line.split_list(FLAGS[name].value)
    if not all(each.isdigit() and 1 <= int(each) <= most for each in text):
        raise InputError(f"--{name}={FLAGS[name].value} must list numbers from 1 to {most}")
    return tuple(map(int, text))


if __name__ == "__main__":
    command_line.run(main)
