"""Rank value encoding against a slow obvious version and against the original's own tokens."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from geneformer_jax.cells.tokenization.rank_encoding import (
    GeneColumns,
    encode_counts,
    gene_columns,
    join_encodings,
)
from geneformer_jax.cells.tokenization.vocabulary import (
    V1_SPECIAL_TOKENS,
    V2_SPECIAL_TOKENS,
    GeneVocabulary,
)
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary


def vocabulary_of(medians, special_tokens=V1_SPECIAL_TOKENS):
    ids = np.array([f"ENSG{n:011d}" for n in range(len(medians))])
    return GeneVocabulary(ids, np.full(len(ids), ""), medians, special_tokens)


def slow_encoding(dense, totals, tokens, vocabulary, max_length):
    """One cell after another, one gene after another."""
    rows = []
    for cell, total in zip(dense.astype(float), totals, strict=True):
        sums = {}
        for column, count in enumerate(cell):
            if tokens[column] >= 0 and count != 0:
                sums[tokens[column]] = sums.get(tokens[column], 0.0) + count
        medians = {token: vocabulary.medians[token - vocabulary.first_gene_token] for token in sums}
        value = {t: n * (1 / total) * 10_000 * (1 / medians[t]) for t, n in sums.items()}
        ranked = sorted(sums, key=lambda token: -value[token])
        if vocabulary.cls_id is None or not ranked:
            rows.append(ranked[:max_length])
        else:
            rows.append([vocabulary.cls_id, *ranked[: max_length - 2], vocabulary.eos_id])
    return rows


def rows_of(encodings):
    pairs = zip(encodings.offsets[:-1], encodings.offsets[1:], strict=True)
    return [encodings.tokens[start:stop].tolist() for start, stop in pairs]


def random_counts(rng, cells, columns, density=0.4):
    dense = rng.poisson(2.0, size=(cells, columns)) * (rng.random((cells, columns)) < density)
    dense[cells // 2] = 0
    return dense


@pytest.mark.parametrize("special_tokens", [V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS])
@pytest.mark.parametrize("max_length", [3, 20, 2048])
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.int64])
def test_equals_the_slow_version(special_tokens, max_length, repeated, dtype):
    rng = np.random.default_rng(5)
    # Few distinct medians and small counts: nearly every cell has ties.
    vocabulary = vocabulary_of(rng.integers(1, 4, 60).astype(float), special_tokens)
    genes = rng.choice(60, 90) if repeated else rng.permutation(60)
    tokens = np.where(rng.random(len(genes)) < 0.8, genes + vocabulary.first_gene_token, -1)
    dense = random_counts(rng, 40, len(tokens)).astype(dtype)
    totals = dense.sum(1) + rng.integers(1, 50, 40).astype(float)
    columns = gene_columns(tokens, vocabulary, max_length)
    encodings = encode_counts(sparse.csr_matrix(dense), totals, columns)
    expected = slow_encoding(dense, totals, tokens, vocabulary, max_length)
    assert rows_of(encodings) == expected
    assert [] in expected and encodings.lengths.tolist() == [len(row) for row in expected]
    assert rows_of(encodings.without_empty()) == [row for row in expected if row]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_change_the_result(threads):
    rng = np.random.default_rng(1)
    vocabulary = vocabulary_of(rng.lognormal(size=200))
    dense = random_counts(rng, 333, 200)
    totals = dense.sum(1) + 1.0
    columns = gene_columns(np.arange(200) + 2, vocabulary, 2048)
    result = encode_counts(sparse.csr_matrix(dense), totals, columns, threads=threads)
    assert rows_of(result) == slow_encoding(dense, totals, columns.tokens, vocabulary, 2048)


@pytest.mark.parametrize("n_genes", [300, 3000])
@pytest.mark.parametrize("outlier", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("max_length", [7, 150, 3000])
def test_values_that_differ_in_the_last_bits_only_are_ranked(n_genes, outlier, max_length):
    # With an outlier, all other values share one key of the sort.
    rng = np.random.default_rng(2)
    medians = 1.0 + rng.permutation(n_genes) * 2.0**-52
    medians[n_genes // 2] = outlier
    vocabulary = vocabulary_of(medians)
    counts = sparse.csr_matrix(np.ones((2, n_genes), np.int32))
    columns = gene_columns(np.arange(n_genes) + 2, vocabulary, max_length)
    totals = np.array([10_000.0, 777.0])
    expected = slow_encoding(counts.toarray(), totals, columns.tokens, vocabulary, max_length)
    assert rows_of(encode_counts(counts, totals, columns)) == expected


@pytest.mark.parametrize("n_genes", [999, 1000, 1001, 1002, 9000])
def test_many_and_few_genes(n_genes):
    rng = np.random.default_rng(n_genes)
    vocabulary = vocabulary_of(rng.lognormal(size=n_genes).round(2) + 0.01)
    dense = rng.poisson(3.0, (3, n_genes)) + 1
    columns = gene_columns(np.arange(n_genes) + 2, vocabulary, 1000)
    totals = dense.sum(1).astype(float)
    expected = slow_encoding(dense, totals, columns.tokens, vocabulary, 1000)
    assert rows_of(encode_counts(sparse.csr_matrix(dense), totals, columns)) == expected


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1.0, 1e12, 1e300])
def test_any_magnitude_is_ranked(scale):
    vocabulary = vocabulary_of(np.array([3.0, 1.0, 2.0]) * scale)
    columns = gene_columns(np.arange(3) + 2, vocabulary, 2048)
    encodings = encode_counts(sparse.csr_matrix([[1, 1, 1]]), np.array([3.0]), columns)
    assert encodings.tokens.tolist() == [3, 4, 2]


def test_explicit_zeros_and_unsorted_repeated_entries():
    data, indices = np.array([0, 2, 5, 3], np.int32), np.array([0, 2, 1, 2], np.int32)
    counts = sparse.csr_matrix((data, indices, np.array([0, 4])), shape=(1, 3))
    vocabulary = vocabulary_of(np.ones(3))
    columns = gene_columns(np.arange(3) + 2, vocabulary, 2048)
    before = counts.copy()
    # Column 2 counts 2 + 3, the same as column 1, which comes first.
    assert encode_counts(counts, np.array([10.0]), columns).tokens.tolist() == [3, 4]
    assert np.array_equal(counts.indices, before.indices)


def test_no_cells_at_all():
    columns = GeneColumns(np.arange(3, dtype=np.int32) + 2, np.ones(3), False, 2048, -1, -1)
    encodings = encode_counts(sparse.csr_matrix((0, 3), dtype=np.int32), np.empty(0), columns)
    assert encodings.tokens.size == 0 and encodings.offsets.tolist() == [0]


def test_joined_encodings_are_the_cells_one_after_another():
    rng = np.random.default_rng(3)
    vocabulary = vocabulary_of(rng.lognormal(size=50))
    columns = gene_columns(np.arange(50) + 2, vocabulary, 2048)
    dense = random_counts(rng, 30, 50)
    totals = dense.sum(1) + 1.0

    def encode(rows):
        return encode_counts(sparse.csr_matrix(dense[rows]), totals[rows], columns)

    parts = [encode(slice(0, 7)), encode(slice(7, 7)), encode(slice(7, 30))]
    assert rows_of(join_encodings(parts)) == rows_of(encode(slice(0, 30)))


@pytest.mark.reference_data
@pytest.mark.parametrize("dataset", ["pbmc3k", "combat_covid"])
@pytest.mark.parametrize(
    ("version", "folder", "max_length"), [("v1", "v1_gc30M", 2048), ("v2", "v2_gc104M", 4096)]
)
def test_identical_to_the_original(data_dir, reference_dir, dataset, version, folder, max_length):
    vocabulary = read_original_vocabulary(data_dir / "dictionaries" / folder)
    adata = anndata.read_h5ad(reference_dir / f"counts_{dataset}.h5ad")
    reference = pd.read_parquet(reference_dir / f"tokens_{version}.parquet")
    reference = reference[reference["dataset"] == dataset].set_index("cell_id")
    assert sorted(reference.index) == sorted(adata.obs["cell_id"])
    tokens = vocabulary.tokens_of(adata.var["ensembl_id"])
    totals = adata.obs["n_counts"].to_numpy(float)
    cut, uncut = (
        encode_counts(adata.X, totals, gene_columns(tokens, vocabulary, length))
        for length in (max_length, 60_000)
    )
    special = 0 if vocabulary.cls_id is None else 1
    cells = zip(adata.obs["cell_id"], rows_of(cut), rows_of(uncut), strict=True)
    for cell_id, row, whole in cells:
        expected = reference.loc[cell_id]
        assert row == expected["input_ids"].tolist()
        assert len(row) == expected["length"]
        beyond = whole[len(row) - special : len(whole) - special]
        assert beyond == expected["genes_beyond_cut"].tolist()
