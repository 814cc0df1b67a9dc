"""Vocabularies out of a corpus, by one process or several."""

import dataclasses
import json

import anndata
import numpy as np
import pytest

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.tokenization.quality_control import QualityRules
from geneformer_jax.cells.tokenization.tokenizer import NO_RULES
from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS
from geneformer_jax.cells.tokenization.vocabulary_building import (
    GeneTable,
    build_vocabulary,
    measure_corpus,
)
from geneformer_jax.cells.tokenization.vocabulary_shards import VocabularyRecipe, VocabularyRun
from geneformer_jax.common.errors import InputError
from tests.helpers.small_stores import build, cells, slow_tokens, with_ids, write


def test_vocabulary_of_a_corpus(files, tmp_path):
    table = tmp_path / "genes.tsv"
    adatas = [anndata.read_h5ad(path) for path in files]
    ids = sorted(adatas[0].var["ensembl_id"])
    lines = [
        f"{gene}.4\tN{n}\t{'protein_coding' if n % 2 else 'miRNA'}" for n, gene in enumerate(ids)
    ]
    table.write_text("gene_id\tsymbol\tbiotype\n" + "\n".join(lines[:-3]) + "\n")
    genes = GeneTable(table)
    with pytest.raises(InputError, match='did you mean "miRNA"'):
        genes.genes(["miRNAs"])
    wanted = genes.genes(["protein_coding"])
    corpus = measure_corpus(files, open_counts, wanted, NO_RULES)
    vocabulary = build_vocabulary(
        corpus,
        symbols=genes.symbols(),
        special_tokens=V2_SPECIAL_TOKENS,
        species="human",
        min_cells=30,
    )
    values = {}
    for adata in adatas:
        scaled = adata.X.toarray() / np.maximum(adata.obs["n_counts"], 1).to_numpy()[:, None] * 1e4
        for column, gene in enumerate(adata.var["ensembl_id"]):
            values.setdefault(gene, []).extend(scaled[scaled[:, column] > 0, column])
    expected = [gene for gene in ids[1:-3:2] if len(values[gene]) >= 30]
    assert vocabulary.gene_ids.tolist() == expected and 0 < len(expected) < 40
    medians = [np.median(values[gene]) for gene in expected]
    np.testing.assert_allclose(vocabulary.medians, medians, rtol=1e-14)
    assert vocabulary.symbols.tolist() == [f"N{ids.index(gene)}" for gene in expected]
    assert corpus.counts["genes_not_in_table"] == 83 - 40
    few = corpus.counts["genes_in_too_few_cells"] + corpus.counts["genes_not_detected"]
    assert few == 40 - len(expected)
    with pytest.raises(InputError, match="lower `min_cells`"):
        build_vocabulary(
            corpus, symbols={}, special_tokens=V1_SPECIAL_TOKENS, species="human", min_cells=999
        )
    with pytest.raises(InputError, match="is in the gene table"):
        measure_corpus(files, open_counts, {"other"}, NO_RULES)


def test_symbols_come_from_the_source_and_may_be_the_ids(tmp_path, files, vocabulary):
    adata = anndata.read_h5ad(files[0])
    names = dict(zip(adata.var["ensembl_id"], adata.var["gene_symbol"], strict=True))
    assert vocabulary.symbols.tolist() == [names[gene] for gene in vocabulary.gene_ids]
    by_name = with_ids(adata, adata.var["gene_symbol"].to_numpy())
    path = write(by_name, tmp_path / "names.h5ad")
    corpus = measure_corpus([path], open_counts, None, NO_RULES)
    named = build_vocabulary(corpus, symbols={}, special_tokens=V1_SPECIAL_TOKENS, species="human")
    store, _ = build(tmp_path / "store", [path], named)
    adata.var["ensembl_id"] = adata.var["gene_symbol"]
    assert [r for r in slow_tokens(adata, named) if r] == [
        r.tolist() for r in store.read(range(19))
    ]


def test_quality_rules_choose_the_cells_of_the_medians(files):
    rules = QualityRules("filter_pass", {}, None, None, None)
    corpus = measure_corpus(files, open_counts, None, rules)
    adatas = [anndata.read_h5ad(path) for path in files]
    kept = sum(int((adata.obs["filter_pass"] == 1).sum()) for adata in adatas)
    assert corpus.counts["cells: filter_pass is not 1"] == 87 - kept
    expected = sum((a.X[(a.obs["filter_pass"] == 1).to_numpy()] > 0).sum() for a in adatas)
    assert corpus.medians.detected.sum() == expected


def start(output, paths, **changes):
    """A process of its own that measures small pieces of files."""
    rules = QualityRules(total_sd=1.5, mitochondrial_sd=None, min_genes=12)
    recipe = VocabularyRecipe(CountOptions(), rules, "human", V2_SPECIAL_TOKENS, piece_values=150)
    recipe = dataclasses.replace(recipe, **changes)
    run = VocabularyRun(output, paths, recipe, {"counts": "x"}, lambda folder: folder)
    if run.is_complete():
        return None
    run.prepare()
    return run


def files_of(folder):
    """Content of a vocabulary, without the time in its provenance."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    provenance = json.loads(files.pop("provenance.json"))
    del provenance["written_at"]
    return files, provenance


@pytest.mark.parametrize(
    "bytes_for_exact", [pytest.param(1 << 20, marks=pytest.mark.slow), 9000, 1000]
)
def test_shares_of_rows_measure_the_same_vocabulary(files, tmp_path, bytes_for_exact):
    """Exact, beyond what is kept, and far beyond it."""
    alone = start(tmp_path / "whole", files, bytes_for_exact=bytes_for_exact)
    assert alone.make((0, 1)) and alone.make((0, 1))
    alone.finish()
    expected = files_of(tmp_path / "whole")
    assert expected[1]["counts"]["medians"] == ("exact" if bytes_for_exact > 9000 else "sketch")
    assert 0 < sum(n for name, n in expected[1]["counts"].items() if "s.d." in name) < 60
    for shares, order in ((3, (2, 0, 1)), (5, (0, 4, 1, 3, 2))):
        output = tmp_path / str(shares)
        todo = list(order)
        while todo:
            run = start(output, files, bytes_for_exact=bytes_for_exact)
            todo = [i for i in todo if not run.make((i, shares))]
        start(output, files, bytes_for_exact=bytes_for_exact).finish()
        assert files_of(output) == expected
        shards = tmp_path / f"{shares}.shards"
        assert not shards.exists()
        # As a process leaves it that is killed when the vocabulary is there.
        shards.mkdir()
        assert start(output, files) is None
        assert not shards.exists()
        with pytest.raises(InputError, match="already holds"):
            start(output, files[:1])


def test_what_is_measured_of_a_cut_corpus_is_that_of_the_whole(files):
    one, cut = (
        measure_corpus(files, open_counts, None, NO_RULES, piece_values=values)
        for values in (1 << 20, 100)
    )
    assert len(cut.index.pieces) > len(one.index.pieces) == 3
    np.testing.assert_array_equal(cut.medians.medians(), one.medians.medians())
    np.testing.assert_array_equal(cut.medians.detected, one.medians.detected)
    assert cut.counts == one.counts


def test_a_share_of_other_files_or_options_is_told(files, tmp_path):
    no_rules = {"rules": NO_RULES}
    first = start(tmp_path / "v", files, **no_rules)
    with pytest.raises(InputError, match="there are only 87 cells"):
        first.make((0, 88))
    assert first.make((0, 2)) and first.make((0, 2))
    with pytest.raises(InputError, match="1 of 2 shards are not measured yet; run `shard`=1/2"):
        first.finish()
    cells(9, "a", n_cells=25).write_h5ad(files[0])
    with pytest.raises(InputError, match=r"a\.h5ad has changed since it was looked at"):
        first.make((0, 3))
    again = start(tmp_path / "v", files, **no_rules)
    assert again.make((1, 2))
    with pytest.raises(InputError, match="was measured on other files or with other options"):
        again.finish()
    assert again.make((0, 2))
    again.finish()
