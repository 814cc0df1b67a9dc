"""Look at the results of a folder in a browser: cells, genes, perturbations and training runs.

Examples:
  python -m geneformer_jax.explore --folder=quickstart/pbmc68k_reduced
  python -m geneformer_jax.explore --folder=results --port=7700

Prints an address to open, which holds a token: nobody is let in without it, and only from this
machine. Through ssh, carry the port: ssh -L 7700:127.0.0.1:7700 MACHINE. What lies below the folder
is found at the start and nothing else is ever read; nothing is written there. Ctrl-C ends it.
Needs the extra: pip install "geneformer_jax[explore]".

Cells: a UMAP, coloured by an obs column or by how high a gene ranks; drag with shift held down to
list cells. Genes: where a gene ranks, its neighbours, its shifts and its classes. Perturbations:
edits, the genes that an edit moves, and the edits that move a gene. Runs: losses by step.
"""

from absl import flags

from geneformer_jax.common import command_line

FLAGS = flags.FLAGS

flags.DEFINE_string("folder", "", "Folder with results of commands, at any depth.")
flags.DEFINE_integer(
    "port", 0, "Port to listen at; 0 takes any that is free.", lower_bound=0, upper_bound=65535
)


def main() -> None:
    """Finds the results and serves them until it is interrupted."""
    # Slow to import, which --help and a mistyped flag should not have to wait for.
    from geneformer_jax.explorer.folder import find_results
    from geneformer_jax.explorer.server import serve

    results = find_results(FLAGS.folder)
    command_line.show([results.describe(), *(f"left out: {each}" for each in results.left_out)])
    serve(results, FLAGS.port, lambda address: command_line.show([f"open {address}"]))


if __name__ == "__main__":
    command_line.run(main, needed=("folder",))
