"""Which column holds the gene ids, names of genomes in front, and genes of other species."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from geneformer_jax.cells.counts.genomes import strip_genomes
from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.tokenization.tokenizer import (
    NO_RULES,
    TokenizerOptions,
    match_genes,
    tokenize_cells,
)
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.cells.tokenization.vocabulary_building import measure_corpus
from geneformer_jax.common.errors import InputError

N = 60
IDS = [f"ENSG{n:011d}" for n in range(N)]
MOUSE_IDS = [f"ENSMUSG{n:011d}" for n in range(N)]
NAMES = [f"SYM{n}" for n in range(N)]
NUMBERS = [str(n) for n in range(N)]
BY_ID = GeneVocabulary(IDS, NAMES, np.arange(1, N + 1))
WITH_ALIASES = GeneVocabulary(
    IDS, NAMES, np.arange(1, N + 1), id_mapping=dict(zip(NAMES, IDS, strict=True))
)
BY_NAME = GeneVocabulary(sorted(NAMES), [""] * N, np.arange(1, N + 1))
COUNTS = np.random.default_rng(0).poisson(1.5, (7, N))


def cells(index, counts=COUNTS, **columns):
    """An AnnData with these names of genes, and columns that hold no names beside them."""
    var = pd.DataFrame({"feature_types": "Gene Expression", **columns}, index=index)
    obs = pd.DataFrame(index=[f"c{n}" for n in range(len(counts))])
    return anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)


def tokens(adata, vocabulary, **reading):
    return [list(each) for each in tokenize_cells(adata, vocabulary, **reading).read(range(7))]


EXPECTED = tokens(cells(IDS), BY_ID)


def column_of(adata, vocabulary=BY_ID, **reading):
    source = AnnDataSource(adata, CountOptions(**reading))
    return match_genes(source, vocabulary, TokenizerOptions(2048)).choice.column


@pytest.mark.parametrize("vocabulary", [BY_ID, WITH_ALIASES])
@pytest.mark.parametrize(
    "column", ["ensembl_id", "gene_ids", "feature_id", "ensembl_ids", "Accession", "_index", "a b"]
)
def test_ids_are_found_by_what_a_column_holds(column, vocabulary):
    adata = cells(NAMES, **{column: IDS})
    assert column_of(adata, vocabulary) == column
    assert tokens(adata, vocabulary) == EXPECTED


@pytest.mark.parametrize("kind", ["categorical", "missing", "versions"])
def test_ids_however_they_are_stored(kind, tmp_path):
    ids = pd.Series(IDS)
    if kind == "versions":
        ids += [f".{n % 9}" for n in range(N)]
    if kind == "missing":
        ids[3] = None
    adata = cells(NAMES, stable=pd.Categorical(ids) if kind == "categorical" else ids.to_numpy())
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for source in (AnnDataSource(adata), open_counts(tmp_path / "cells.h5ad")):
        match = match_genes(source, WITH_ALIASES, TokenizerOptions(2048))
        assert match.choice.column == "stable"
        assert match.matched == N - (kind == "missing")


def test_a_vocabulary_of_symbols_takes_symbols_although_ids_are_there():
    adata = cells(NAMES, ensembl_id=IDS)
    assert column_of(adata, BY_NAME) == "index"
    assert tokens(adata, BY_NAME) == tokens(cells(NAMES), BY_NAME)


def test_ids_of_few_genes_do_not_take_the_place_of_symbols_of_all():
    few = [each if n % 3 == 0 else "" for n, each in enumerate(IDS)]
    assert column_of(cells(NAMES, ensembl_id=few), WITH_ALIASES) == "index"
    most = [each if n % 9 else "" for n, each in enumerate(IDS)]
    assert column_of(cells(NAMES, ensembl_id=most), WITH_ALIASES) == "ensembl_id"


def test_orthologs_beside_ids_of_another_species():
    assert column_of(cells(MOUSE_IDS, human=IDS)) == "human"
    options = TokenizerOptions(2048, orthologs=dict(zip(MOUSE_IDS, IDS, strict=True)))
    source = AnnDataSource(cells(NAMES, gene=MOUSE_IDS))
    assert match_genes(source, BY_ID, options).choice.column == "gene"


def test_what_is_asked_for_is_taken():
    adata = cells(IDS, symbol=NAMES)
    assert column_of(adata, WITH_ALIASES, gene_column="symbol") == "symbol"
    assert tokens(adata, BY_ID, gene_column="symbol", symbols="names") == EXPECTED
    with pytest.raises(
        InputError, match=r"0 of 60 .*looked for in symbol\).*name a column of gene"
    ):
        tokens(adata, BY_ID, gene_column="symbol")
    with pytest.raises(InputError, match="`symbols` is 'all'"):
        tokens(adata, BY_ID, symbols="all")


def test_raw_genes_that_are_numbered(tmp_path):
    """As SeuratDisk and its readers leave them: names in `_index`, numbers in the index."""
    adata = cells(NAMES)
    adata.X = adata.X.astype(np.float32).log1p()
    adata.raw = anndata.AnnData(sparse.csr_matrix(COUNTS), var=pd.DataFrame(index=NUMBERS))
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as root:
        root["raw/var"].create_dataset("names", data=NAMES, dtype=h5py.string_dtype())
        root["raw/var"].move(root["raw/var"].attrs["_index"], "number")
        root["raw/var"].move("names", "_index")
        root["raw/var"].attrs["_index"] = "number"
    source = open_counts(path)
    match = match_genes(source, WITH_ALIASES, TokenizerOptions(2048))
    assert (match.choice.matrix, match.choice.column, match.matched) == ("raw/X", "_index", N)


@pytest.mark.parametrize(
    ("name", "bare", "species"),
    [
        ("GRCh38_CD3D", "CD3D", "human"),
        ("hg38___ENSG00000167286.9", "ENSG00000167286.9", "human"),
        ("hg19-CD3D", "CD3D", "human"),
        ("GRCh38-MIR1302-2HG", "MIR1302-2HG", "human"),
        ("mm10___Cd3d", "Cd3d", "mouse"),
        ("GRCm39_ENSMUSG00000032094", "ENSMUSG00000032094", "mouse"),
        ("DEPRECATED_ENSG00000167286", "DEPRECATED_ENSG00000167286", None),
        ("ENSG00000182378_PAR_Y", "ENSG00000182378_PAR_Y", None),
        ("HGF", "HGF", None),
        ("MMP9", "MMP9", None),
        ("", "", None),
    ],
)
def test_names_of_genomes(name, bare, species):
    names, found = strip_genomes(np.array([name, name]))
    assert names.tolist() == [bare, bare]
    assert (found is None) == (species is None)
    assert species is None or found.tolist() == [species, species]


def test_a_symbol_that_looks_like_a_genome_keeps_its_name():
    names = np.array([*NAMES, "RN5-8S1"])
    assert strip_genomes(names)[0].tolist() == names.tolist()


@pytest.mark.parametrize("prefix", ["GRCh38_", "hg38_", "GRCh38______", "hg19-"])
def test_one_genome_in_front(prefix):
    index, ids = ([f"{prefix}{each}" for each in column] for column in (NAMES, IDS))
    assert tokens(cells(index, gene_ids=ids), BY_ID) == EXPECTED
    assert tokens(cells(index), WITH_ALIASES) == EXPECTED


def two_species(ids, mouse, **columns):
    rng = np.random.default_rng(1)
    counts = np.hstack([COUNTS, rng.poisson(3, (7, len(mouse)))])
    return cells([*ids, *mouse], counts, **columns)


@pytest.mark.parametrize("vocabulary", [BY_ID, WITH_ALIASES])
@pytest.mark.parametrize("place", ["index", "genome", "genome symbols"])
def test_the_human_part_of_two_species_is_used(place, vocabulary):
    human, mouse = IDS, MOUSE_IDS
    if place != "index":
        human, mouse = [f"GRCh38_{i}" for i in IDS], [f"mm10___{i}" for i in MOUSE_IDS]
    adata = two_species(human, mouse)
    if place == "genome symbols":
        # The mouse's symbols are the human ones in upper case.
        symbols = [*(f"GRCh38_{n}" for n in NAMES), *(f"mm10___{n.title()}" for n in NAMES)]
        adata = two_species(symbols[:N], symbols[N:], gene_ids=adata.var_names.to_numpy())
    assert tokens(adata, vocabulary) == EXPECTED
    source = AnnDataSource(adata)
    match = match_genes(source, vocabulary, TokenizerOptions(2048))
    assert (match.choice.foreign, match.named, match.matched) == (N, N, N)
    (batch,) = source.batches()
    np.testing.assert_array_equal(batch.totals, COUNTS.sum(1))


def test_symbols_of_two_species_alone():
    symbols = [f"GRCh38_{n}" for n in NAMES], [f"mm10___{n.title()}" for n in NAMES]
    assert tokens(two_species(*symbols), WITH_ALIASES) == EXPECTED


def test_stated_totals_of_two_species_stay():
    adata = two_species(IDS, MOUSE_IDS)
    adata.obs["n_counts"] = np.asarray(adata.X.sum(1)).ravel()
    source = AnnDataSource(adata)
    match_genes(source, BY_ID, TokenizerOptions(2048))
    (batch,) = source.batches()
    np.testing.assert_array_equal(batch.totals, adata.obs["n_counts"])


def test_a_panel_with_ids_of_a_virus_is_no_mixture():
    adata = two_species(IDS, [f"ENSSASG{n:011d}" for n in range(10)])
    source = AnnDataSource(adata)
    match = match_genes(source, BY_ID, TokenizerOptions(2048))
    assert (match.choice.foreign, match.matched) == (0, N)
    (batch,) = source.batches()
    np.testing.assert_array_equal(batch.totals, np.asarray(adata.X.sum(1)).ravel())


def test_retired_probes_stay_unknown():
    ids = [f"DEPRECATED_{each}" if n % 2 else each for n, each in enumerate(IDS)]
    match = match_genes(AnnDataSource(cells(ids)), BY_ID, TokenizerOptions(2048))
    assert match.matched == N // 2


def corpus_of(folder, *files, **options):
    paths = [folder / f"{n}.h5ad" for n in range(len(files))]
    for path, adata in zip(paths, files, strict=True):
        adata.write_h5ad(path)
    return measure_corpus(paths, open_counts, None, NO_RULES, **options)


def test_a_vocabulary_is_made_of_ids_where_a_column_has_them(tmp_path):
    corpus = corpus_of(tmp_path, cells(NAMES, gene_ids=IDS), cells(IDS))
    expected = COUNTS / COUNTS.sum(1, keepdims=True) * 1e4
    medians = [np.median(each[each > 0]) for each in expected.T]
    assert corpus.gene_ids.tolist() == IDS
    np.testing.assert_allclose(corpus.medians.medians(), medians)
    chosen = [source.facts["choice"]["gene_column"] for source in corpus.index.sources]
    assert chosen == ["gene_ids", "index"]
    assert corpus.symbols["ENSG00000000004"] == "SYM4"


def test_a_vocabulary_of_symbols_is_told(tmp_path):
    corpus = corpus_of(tmp_path, cells(NAMES, extra=NUMBERS))
    assert corpus.gene_ids.tolist() == sorted(NAMES)
    (source,) = corpus.index.sources
    assert "gene ids in index (symbols" in source.facts["description"]


def test_files_of_ids_and_of_symbols_make_no_vocabulary(tmp_path):
    with pytest.raises(InputError, match=r"0\.h5ad has Ensembl ids, but .*1\.h5ad has none"):
        corpus_of(tmp_path, cells(IDS), cells(NAMES))


def test_a_vocabulary_of_one_of_two_species(tmp_path):
    adata = two_species([f"GRCh38_{i}" for i in IDS], [f"mm10___{i}" for i in MOUSE_IDS])
    assert corpus_of(tmp_path, adata).gene_ids.tolist() == IDS
    assert corpus_of(tmp_path, adata, species="mouse").gene_ids.tolist() == MOUSE_IDS
