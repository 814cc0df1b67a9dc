"""Turn raw counts into a cell store: each cell's genes, ranked by normalised expression.

Examples:
  python -m geneformer_jax.tokenize --counts=data/*.h5ad --vocabulary=vocabulary --output=store

Many files may be split among processes or machines that see the same output folder: give each
--shard=0/4 .. --shard=3/4, then join them with --finish. A killed run goes on where it was when the
same command is given again, and more files may be added to a complete store.
"""

from pathlib import Path

from absl import flags

from geneformer_jax.cells.tokenization.flags import (
    define_count_flags,
    define_symbols_flag,
    quality_rules,
    reading_options,
)
from geneformer_jax.common import command_line
from geneformer_jax.common.command_line import configuration, parse_shard

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
flags.DEFINE_string("shard", "", "i/n: take only every n-th file, starting from i (0 .. n-1).")
flags.DEFINE_bool("finish", False, "Join what --shard processes have written.")
flags.DEFINE_string("report", "", "New folder for a report on the store.")
flags.DEFINE_bool("verify", False, "Only check the checksums of the store in --output.")


def main() -> None:
    """Builds, continues, joins or verifies a cell store."""
    # Reading counts imports half of SciPy, which --help and a mistyped flag should not wait for.
    from geneformer_jax.cells.formats.open import look_ahead
    from geneformer_jax.cells.formats.paths import expand_paths
    from geneformer_jax.cells.store.builder import StoreBuild
    from geneformer_jax.cells.store.cell_store import verify_store
    from geneformer_jax.cells.tokenization.gene_ids import read_orthologs
    from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions, default_max_length
    from geneformer_jax.common.files import count_files, require_new_folder
    from geneformer_jax.interop.original_dictionaries import read_vocabulary

    if FLAGS.verify:
        verify_store(FLAGS.output)
        return
    paths = expand_paths(FLAGS.counts)
    look_ahead(paths[0])
    vocabulary = read_vocabulary(FLAGS.vocabulary)
    obs = command_line.split_list(FLAGS.obs)
    if FLAGS.report:
        require_new_folder(FLAGS.report)
    shard = parse_shard(FLAGS.shard)
    options = TokenizerOptions(
        max_length=FLAGS.max_length or default_max_length(vocabulary),
        orthologs=read_orthologs(FLAGS.orthologs) if FLAGS.orthologs else None,
        quality=quality_rules(),
    )
    build = StoreBuild(
        Path(FLAGS.output), vocabulary, options, reading_options(), obs,
        prefix_cell_ids=FLAGS.prefix_cell_ids,
    )  # fmt: skip
    print(f"{count_files(paths)} -> {FLAGS.output}; vocabulary {FLAGS.vocabulary}:")
    print(f"  {len(vocabulary.gene_ids):,} genes of {vocabulary.species}, {vocabulary.hash[:12]}")
    build.survey(paths, FLAGS.skip_bad_files)
    if build.is_complete():
        print(f"{FLAGS.output} is complete and holds all of these files: nothing to do")
    else:
        if not FLAGS.finish:
            build.write(shard, FLAGS.skip_bad_files)
        if FLAGS.shard and not FLAGS.finish:
            print(f"shard {FLAGS.shard} is done; when all are, run the same command with --finish")
            return
        build.finish(configuration(), FLAGS.skip_bad_files)
    if FLAGS.report:
        # matplotlib takes a second to import, which only a report should have to wait for.
        from geneformer_jax.reporting.corpus_report import write_corpus_report

        write_corpus_report(FLAGS.output, FLAGS.report, [name.removesuffix("?") for name in obs])
        print(f"{FLAGS.report}: report on the store, in report.html")


if __name__ == "__main__":
    command_line.run(
        main,
        needed=NEEDED,
        spared={"verify": ("counts", "vocabulary")},
    )
