"""Vocabularies out of a corpus, by one process or several."""

import anndata
import numpy as np
import pytest

from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.tokenization.quality_control import QualityRules
from geneformer_jax.cells.tokenization.tokenizer import NO_RULES
from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS
from geneformer_jax.cells.tokenization.vocabulary_building import (
    GeneTable,
    build_vocabulary,
    measure_corpus,
)
from geneformer_jax.common.errors import InputError
from tests.helpers.small_stores import build, slow_tokens, with_ids, write


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
