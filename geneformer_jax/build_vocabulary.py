"""Build a gene vocabulary: the genes of a corpus of raw counts and their non-zero medians.

Examples:
  python -m geneformer_jax.build_vocabulary --counts=data/*.h5ad --output=vocabulary

Genes are those with at least --min_cells expressing cells; a --gene_table can restrict them to
biotypes, as the original does (protein-coding and miRNA genes). Any gene id is allowed, Ensembl ids
are the norm.

Many files may be split among processes or machines that see the same output folder: give each
--shard=0/4 .. --shard=3/4, then join them with --finish.
"""

from absl import flags

from geneformer_jax.cells.tokenization.flags import (
    define_count_flags,
    quality_rules,
    reading_options,
)
from geneformer_jax.common import command_line
from geneformer_jax.common.command_line import configuration, parse_shard, shard_of
from geneformer_jax.common.errors import InputError

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
flags.DEFINE_string("shard", "", "i/n: take only every n-th file, starting from i (0 .. n-1).")
flags.DEFINE_bool("finish", False, "Join what --shard processes have measured.")


def main() -> None:
    """Measures the corpus and writes the vocabulary."""
    if FLAGS.biotypes and not FLAGS.gene_table:
        raise InputError("--biotypes needs a --gene_table with each gene's biotype")
    # Reading counts imports half of SciPy, which --help and a mistyped flag should not wait for.
    from geneformer_jax.cells.formats.open import CountFiles
    from geneformer_jax.cells.formats.paths import expand_paths
    from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS
    from geneformer_jax.cells.tokenization.vocabulary_building import (
        GeneTable,
        build_vocabulary,
        measure_files,
        survey_corpus,
    )
    from geneformer_jax.cells.tokenization.vocabulary_shards import (
        join_shards,
        save_shard,
        shards_folder,
        work_key,
    )
    from geneformer_jax.common.files import count_files, remove, require_new_folder
    from geneformer_jax.common.provenance import describe_run

    output = require_new_folder(FLAGS.output)
    paths = expand_paths(FLAGS.counts)
    table = GeneTable(FLAGS.gene_table) if FLAGS.gene_table else None
    wanted = table.genes(command_line.split_list(FLAGS.biotypes)) if table else None
    rules = quality_rules()
    reading = reading_options()
    open_source = CountFiles(reading).open
    print(f"medians of genes over the cells of {count_files(paths)} -> {output}")
    corpus = survey_corpus(paths, open_source, wanted, species=FLAGS.species)
    shards = shards_folder(output)
    key = work_key(corpus, paths, rules, str(reading.identity()))
    if FLAGS.finish:
        join_shards(shards, key, corpus)
    else:
        shard = parse_shard(FLAGS.shard)
        dropped = measure_files(corpus, shard_of(paths, shard), open_source, rules)
        if FLAGS.shard:
            save_shard(shards, shard, key, corpus, dropped)
            print(f"shard {FLAGS.shard} is done; when all are, run the same with --finish instead")
            return
        corpus.add_dropped(dropped)
    vocabulary = build_vocabulary(
        corpus,
        symbols=table.symbols() if table else {},
        special_tokens=V2_SPECIAL_TOKENS if FLAGS.special_tokens == "v2" else V1_SPECIAL_TOKENS,
        species=FLAGS.species,
        min_cells=FLAGS.min_cells,
    )
    inputs = [*paths, *([FLAGS.gene_table] if table else [])]
    chosen = [{"path": str(path), **each.facts()} for path, each in corpus.choices.items()]
    facts = {**corpus.counts, "sources": chosen}
    vocabulary.save(output, describe_run("build_vocabulary", configuration(), inputs, facts))
    remove(shards)
    command_line.show(corpus.describe())
    print(f"{FLAGS.output}: vocabulary {vocabulary.hash[:12]}")


if __name__ == "__main__":
    command_line.run(main, needed=NEEDED)
