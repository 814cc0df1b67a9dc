"""Build a gene vocabulary: the genes of a corpus of raw counts and their non-zero medians.

Examples:
  python -m geneformer_jax.build_vocabulary --counts=data/*.h5ad --output=vocabulary

Genes are those with at least --min_cells expressing cells; a --gene_table can restrict them to
biotypes, as the original does (protein-coding and miRNA genes). Any gene id is allowed, Ensembl ids
are the norm.

The cells of all files may be shared by processes or machines that see the same output folder: give
each --shard=0/4 .. --shard=3/4, then join them with --finish.
"""

from pathlib import Path

from absl import flags

from geneformer_jax.cells.tokenization.flags import (
    define_count_flags,
    quality_rules,
    reading_options,
)
from geneformer_jax.common import command_line
from geneformer_jax.common.command_line import configuration
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.shares import SharedRun, run_shared, share_flags

FLAGS = flags.FLAGS
NEEDED = ("counts", "output")

define_count_flags()
flags.DEFINE_string("output", "", "Folder of the new vocabulary.")
flags.DEFINE_string("gene_table", "", "TSV or CSV with the columns gene_id, symbol, biotype.")
flags.DEFINE_string("biotypes", "", "Biotypes of the gene table to keep; all if empty.")
flags.DEFINE_string("species", "human", "Species of the gene ids.")
flags.DEFINE_integer("min_cells", 1, "Cells that must express a gene at least.", lower_bound=1)
flags.DEFINE_enum(
    "special_tokens", "v1", ("v1", "v2"), "v1: <pad> <mask>; v2: <pad> <mask> <cls> <eos>."
)
share_flags()


def shared_run() -> SharedRun:
    """The work that the flags ask for."""
    if FLAGS.biotypes and not FLAGS.gene_table:
        raise InputError("--biotypes needs a --gene_table with each gene's biotype")
    # Reading counts imports half of SciPy, which --help and a mistyped flag should not wait for.
    from geneformer_jax.cells.formats.paths import expand_paths
    from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS
    from geneformer_jax.cells.tokenization.vocabulary_shards import VocabularyRecipe, VocabularyRun
    from geneformer_jax.reporting.command_reports import report_beside, write_vocabulary_report
    from geneformer_jax.reporting.index import require_own_page

    require_own_page(report_beside(Path(FLAGS.output)))
    recipe = VocabularyRecipe(
        reading=reading_options(),
        rules=quality_rules(),
        species=FLAGS.species,
        special_tokens=V2_SPECIAL_TOKENS if FLAGS.special_tokens == "v2" else V1_SPECIAL_TOKENS,
        min_cells=FLAGS.min_cells,
        table=FLAGS.gene_table or None,
        biotypes=command_line.split_list(FLAGS.biotypes),
    )
    paths = expand_paths(FLAGS.counts)
    return VocabularyRun(
        Path(FLAGS.output), paths, recipe, configuration(), write_vocabulary_report
    )


def main() -> None:
    """Measures the corpus and writes the vocabulary."""
    run_shared(shared_run())


if __name__ == "__main__":
    command_line.run(main, needed=NEEDED)
