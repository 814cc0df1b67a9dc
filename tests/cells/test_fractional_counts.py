"""Estimated counts, which need not be whole: refused by default, rounded or kept on request."""

import anndata
import numpy as np
import pytest
from scipy import sparse

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.counts.raw_counts import MatrixLocation, as_raw_counts
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.tokenization.tokenizer import NO_RULES, tokenize_cells
from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS, GeneVocabulary
from geneformer_jax.cells.tokenization.vocabulary_building import build_vocabulary, measure_corpus
from geneformer_jax.common.errors import InputError
from tests.helpers.count_files import example_cells

PLACE = MatrixLocation("cells", 0, [f"c{n}" for n in range(60)], np.array(["A", "B", "C"]), "give")


def estimated(seed=0):
    """Cells of which every tenth count was shared among genes, and some became 0."""
    rng = np.random.default_rng(seed)
    adata = example_cells(dtype=np.float64)
    parts = rng.choice(
        [0, 0.5, 1 / 3, 0.0014, 0.75], adata.X.nnz, p=[0.9, 0.025, 0.025, 0.025, 0.025]
    )
    adata.X.data = np.where(rng.random(adata.X.nnz) < 0.03, 0, adata.X.data + parts)
    del adata.obs["n_counts"]
    return adata


def counts_of(source):
    (batch,) = source.batches()
    assert batch.counts.has_canonical_format
    assert batch.counts.data.all()
    return batch.counts, batch.totals


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_fractions_are_rounded_or_kept(layout, kind, tmp_path):
    adata = estimated()
    dense = adata.X.toarray().astype(kind)
    adata.X = dense if layout == "dense" else sparse.csr_array(dense).asformat(layout)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for policy, expected in (("round", np.rint(dense)), ("keep", dense)):
        options = CountOptions(fractional=policy)
        for source in (
            open_counts(tmp_path / "cells.h5ad", options),
            AnnDataSource(adata, options),
        ):
            counts, totals = counts_of(source)
            assert np.array_equal(counts.toarray(), expected)
            assert counts.dtype == (np.int32 if policy == "round" else np.float64)
            np.testing.assert_allclose(totals, expected.astype(np.float64).sum(1), rtol=1e-12)


def test_the_refusal_names_both_ways():
    with pytest.raises(InputError, match='`fractional`: "round", or "keep"') as error:
        list(AnnDataSource(estimated()).batches())
    assert "estimated" in str(error.value)


def test_whole_numbers_are_the_same_under_every_policy():
    adata = example_cells()
    plain, totals = counts_of(AnnDataSource(adata))
    for policy in ("round", "keep"):
        counts, its_totals = counts_of(AnnDataSource(adata, CountOptions(fractional=policy)))
        assert (counts != plain).nnz == 0
        assert np.array_equal(its_totals, totals)


def rows(values, columns):
    indptr = np.array([0, len(values)], np.int32)
    return sparse.csr_matrix((np.array(values), np.array(columns, np.int32), indptr), (1, 3))


def test_entries_held_twice_are_added_before_they_are_rounded():
    halves = rows([0.4, 3.0, 0.4, 0.5], [2, 0, 2, 1])
    result = as_raw_counts(halves, PLACE, "round")
    assert result.counts.toarray().tolist() == [[3, 0, 1]]
    assert result.counts.nnz == 2
    assert result.sums.tolist() == [4]
    assert halves.nnz == 4, "what was given is not changed"


@pytest.mark.parametrize("policy", ["round", "keep"])
@pytest.mark.parametrize(
    ("value", "word"), [(-0.2, "negative"), (np.nan, "not a number"), (2.0**24 + 2, "too large")]
)
def test_what_is_no_amount_is_refused_under_every_policy(policy, value, word):
    with pytest.raises(InputError, match=f'cell "c0", gene "B": .*{word}'):
        as_raw_counts(rows([1.5, value], [0, 1]), PLACE, policy)


@pytest.mark.parametrize("policy", ["round", "keep"])
def test_logarithms_are_never_taken_for_estimates(policy):
    adata = example_cells(n_cells=20, n_genes=200, dtype=np.float64)
    totals = np.maximum(adata.X.sum(1), 1).A1
    adata.X = sparse.csr_matrix(np.log1p(adata.X.multiply(1e4 / totals[:, None]).toarray()))
    with pytest.raises(InputError, match="log-transformed"):
        list(AnnDataSource(anndata.AnnData(adata.X), CountOptions(fractional=policy)).batches())


def test_estimates_in_x_come_before_the_counts_of_a_layer():
    adata = estimated()
    adata.layers["counts"] = example_cells().X
    whole, _ = counts_of(AnnDataSource(adata))
    kept, _ = counts_of(AnnDataSource(adata, CountOptions(fractional="keep")))
    assert np.array_equal(whole.toarray(), adata.layers["counts"].toarray())
    assert np.array_equal(kept.toarray(), adata.X.toarray())


def test_a_total_of_the_counts_before_rounding_is_right():
    adata = estimated()
    adata.X.data[adata.X.data % 1 == 0] += 0.5
    adata.obs["n_counts"] = adata.X.sum(1).A1
    _, totals = counts_of(AnnDataSource(adata, CountOptions(fractional="round")))
    assert np.array_equal(totals, adata.obs["n_counts"])
    adata.obs["n_counts"] *= 0.5
    with pytest.raises(InputError, match="n_counts"):
        counts_of(AnnDataSource(adata, CountOptions(fractional="round")))


def test_no_such_policy():
    with pytest.raises(InputError, match=r"`fractional` is 'floor'; give round or keep"):
        CountOptions(fractional="floor")


@pytest.fixture(scope="module")
def genes():
    ids = [f"ENSG{n:011d}" for n in range(83)]
    medians = np.random.default_rng(3).lognormal(1.0, 0.5, 83)
    return GeneVocabulary(np.array(ids), np.full(83, ""), medians, V1_SPECIAL_TOKENS)


@pytest.mark.parametrize("policy", ["round", "keep"])
def test_ranks_are_those_of_the_estimates(policy, genes):
    adata = estimated()
    cells = tokenize_cells(adata, genes, fractional=policy)
    dense = adata.X.toarray() if policy == "keep" else np.rint(adata.X.toarray())
    numbers = np.array([int(gene[4:]) for gene in adata.var["ensembl_id"]])
    for row, tokens in zip(cells.rows, cells.read(range(len(cells))), strict=True):
        there = np.flatnonzero(dense[row])
        medians = genes.medians[numbers[there]]
        values = dense[row, there] * (1 / dense[row].sum()) * 10_000 * (1 / medians)
        ranked = numbers[there][np.argsort(-values, kind="stable")]
        assert np.array_equal(tokens, ranked + genes.first_gene_token)


def test_medians_of_estimates(tmp_path):
    adata = estimated()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    options = CountOptions(fractional="keep")
    corpus = measure_corpus(
        [tmp_path / "cells.h5ad"], lambda path: open_counts(path, options), None, NO_RULES
    )
    found = build_vocabulary(corpus, symbols={}, special_tokens=V1_SPECIAL_TOKENS, species="human")
    dense = adata.X.toarray()
    values = dense * 1e4 / np.maximum(dense.sum(1, keepdims=True), 1e-9)
    medians = {
        gene: np.median(column[column > 0])
        for gene, column in zip(adata.var["ensembl_id"], values.T, strict=True)
        if (column > 0).any()
    }
    for gene, median in zip(found.gene_ids, found.medians, strict=True):
        assert median == pytest.approx(medians[gene], rel=1e-12)
