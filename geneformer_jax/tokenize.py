"""Turn raw counts into a cell store: each cell's genes, ranked by normalised expression.

Examples:
  python -m geneformer_jax.tokenize --counts=data/*.h5ad --vocabulary=vocabulary --output=store
  python -m geneformer_jax.tokenize --counts=data/*.h5ad --vocabulary=vocabulary --dry_run \\
      --genes=CD74,CD3E

--dry_run reads all counts, says of each source which matrix and gene ids were found, how many of
its genes are known, what its counts are, which cells would be left out, and in how many cells the
listed genes are in sight; it writes nothing.
The cells of all files may be shared by processes or machines that see the same output folder,
whatever the sizes of the files: give each --shard=0/4 .. --shard=3/4, then join them with --finish.
Where --quality compares a cell with all of its file, a share of a large file says that it waits for
the others: then run it again. A killed run goes on where it was when the
same command is given again, and more files may be added to a complete store.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from geneformer_jax.cells.tokenization.flags import (
    define_count_flags,
    define_symbols_flag,
    quality_rules,
    reading_options,
)
from geneformer_jax.common import command_line
from geneformer_jax.common.command_line import configuration
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.shares import SharedRun, run_shared, share_flags

if TYPE_CHECKING:
    from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions
    from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary

FLAGS = flags.FLAGS
NEEDED = ("counts", "vocabulary", "output")

define_count_flags()
flags.DEFINE_string("vocabulary", "", "Vocabulary folder, or the original's dictionaries.")
flags.DEFINE_string("output", "", "Folder of the cell store.")
flags.DEFINE_string(
    "obs", "", "Obs columns to store with the cells, separated by commas; NAME? may be missing."
)
flags.DEFINE_integer("max_length", 0, "Tokens of a cell at most; 0: 2,048 for V1, 4,096 for V2.")
flags.DEFINE_string("orthologs", "", "Table (TSV or CSV) of gene id and gene id of the vocabulary.")
define_symbols_flag()
flags.DEFINE_bool("prefix_cell_ids", False, 'Put "<file name>|" in front of each cell id.')
flags.DEFINE_bool("skip_bad_files", False, "Go on without files that cannot be used.")
share_flags()
flags.DEFINE_bool("dry_run", False, "Read everything, say what would be stored, write nothing.")
flags.DEFINE_string("genes", "", "For --dry_run: genes, or a file of them, to find in the cells.")
flags.DEFINE_string("report", "", "Folder for a report on the store.")
flags.DEFINE_bool("verify", False, "Only check the checksums of the store in --output.")


def shared_run() -> SharedRun:
    """The work that the flags ask for."""
    # Reading counts imports half of SciPy, which --help and a mistyped flag should not wait for.
    from geneformer_jax.cells.store.builder import StoreBuild
    from geneformer_jax.cells.store.building.run import TokenizeRun

    paths, vocabulary, options = _inputs()
    build = StoreBuild(
        Path(FLAGS.output), vocabulary, options, reading_options(),
        command_line.split_list(FLAGS.obs), prefix_cell_ids=FLAGS.prefix_cell_ids,
    )  # fmt: skip
    return TokenizeRun(build, paths, configuration(), FLAGS.skip_bad_files)


def _inputs() -> "tuple[list[Path], GeneVocabulary, TokenizerOptions]":
    """Returns the sources, the vocabulary, and how cells are encoded."""
    from geneformer_jax.cells.formats.open import look_ahead
    from geneformer_jax.cells.formats.paths import expand_paths
    from geneformer_jax.cells.tokenization.gene_ids import read_orthologs
    from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions, default_max_length
    from geneformer_jax.interop.original_dictionaries import read_vocabulary

    paths = expand_paths(FLAGS.counts)
    look_ahead(paths[0])
    vocabulary = read_vocabulary(FLAGS.vocabulary)
    options = TokenizerOptions(
        max_length=FLAGS.max_length or default_max_length(vocabulary),
        orthologs=read_orthologs(FLAGS.orthologs) if FLAGS.orthologs else None,
        quality=quality_rules(),
    )
    known = f"{len(vocabulary.gene_ids):,} genes of {vocabulary.species}, {vocabulary.hash[:12]}"
    print(f"vocabulary {FLAGS.vocabulary}: {known}")
    return paths, vocabulary, options


def _dry_run() -> None:
    """Says what would be stored."""
    from geneformer_jax.cells.store.building.dry_run import DryRun
    from geneformer_jax.inference.listed_genes import find_genes, read_genes

    paths, vocabulary, options = _inputs()
    genes = find_genes(vocabulary, read_genes(FLAGS.genes)) if FLAGS.genes else None
    dry = DryRun(
        vocabulary, options, reading_options(), command_line.split_list(FLAGS.obs),
        prefix_cell_ids=FLAGS.prefix_cell_ids,
    )  # fmt: skip
    try:
        command_line.show(dry.look(paths))
    finally:
        facts = {"sources": [each.facts() for each in dry.outlooks], "bad_files": dry.bad_files}
        if genes is not None:
            facts["genes"] = dry.coverage(genes.tokens)
            facts["unknown_genes"] = list(genes.unknown)
            command_line.show(_describe_genes(facts["genes"], genes.unknown))
        command_line.note("dry_run", facts)


def _describe_genes(coverage: dict[str, float], unknown: Sequence[str]) -> Iterator[str]:
    listed, missing = len(coverage) + len(unknown), f"; not: {', '.join(unknown)}"
    yield (
        f"{len(coverage):,} of {listed:,} genes are in the vocabulary{missing if unknown else ''}"
    )
    for name, fraction in sorted(coverage.items(), key=lambda each: each[1]):
        yield f"  {name}: in sight in {fraction:.1%} of the cells"


def main() -> None:
    """Builds, continues, joins or verifies a cell store."""
    from geneformer_jax.cells.store.cell_store import verify_store

    if FLAGS.verify:
        verify_store(FLAGS.output)
        return
    if FLAGS.genes and not FLAGS.dry_run:
        raise InputError("`genes` are looked for by `dry_run`; give both, or leave them out")
    if FLAGS.dry_run:
        _dry_run()
        return
    if not FLAGS.report:
        run_shared(shared_run())
        return
    # matplotlib takes a second to import, which only a report should have to wait for.
    from geneformer_jax.reporting.corpus_report import require_own_report, write_corpus_report

    columns = [name.removesuffix("?") for name in command_line.split_list(FLAGS.obs)]
    require_own_report(FLAGS.output, FLAGS.report, columns)
    run_shared(shared_run())
    if not FLAGS.shard:
        write_corpus_report(FLAGS.output, FLAGS.report, columns)
        print(f"{FLAGS.report}: report on the store, in report.html")


if __name__ == "__main__":
    command_line.run(
        main,
        needed=NEEDED,
        spared={"verify": ("counts", "vocabulary"), "dry_run": ("output",)},
    )
