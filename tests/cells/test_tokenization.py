"""Which genes and cells of a source are encoded, in a store and in memory."""

import json
import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.store.builder import StoreBuild
from geneformer_jax.cells.tokenization.gene_ids import read_orthologs
from geneformer_jax.cells.tokenization.quality_control import QualityRules
from geneformer_jax.cells.tokenization.tokenizer import (
    NO_GENE,
    NO_RULES,
    TokenizerOptions,
    check_max_length,
    tokenize_cells,
)
from geneformer_jax.cells.tokenization.vocabulary import (
    V1_SPECIAL_TOKENS,
    V2_SPECIAL_TOKENS,
    GeneVocabulary,
)
from geneformer_jax.cells.tokenization.vocabulary_building import build_vocabulary, measure_corpus
from geneformer_jax.common.errors import InputError
from tests.helpers.small_stores import build, cells, slow_tokens, with_ids, write


def test_nothing_matches(tmp_path, vocabulary):
    path = write(with_ids(cells(), [f"probe{n}" for n in range(83)]), tmp_path / "x.h5ad")
    with pytest.raises(InputError, match="0 of 83 gene ids") as raised:
        build(tmp_path / "store", [path], vocabulary)
    message = str(raised.value)
    assert "probe0, probe1, probe2" in message and vocabulary.gene_ids[2] in message
    assert "\n" not in message and not (tmp_path / "store").exists()


def test_names_instead_of_ids_are_found_if_asked(tmp_path, files, vocabulary):
    by_name = anndata.read_h5ad(files[0])
    by_name.var = pd.DataFrame(index=by_name.var["gene_symbol"].to_numpy())
    path = write(by_name, tmp_path / "names.h5ad")
    with pytest.raises(InputError, match="are gene names: use `symbols`=names"):
        build(tmp_path / "store", [path], vocabulary)
    named, _ = build(tmp_path / "store", [path], vocabulary, symbols="names")
    by_id, _ = build(tmp_path / "ids", [files[0]], vocabulary)
    for a, b in zip(named.read(range(19)), by_id.read(range(19)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("pattern", ["{id}|{symbol}", "{symbol}_{id}"])
def test_ids_with_symbols_around_them_are_refused_with_what_helps(
    tmp_path, files, vocabulary, pattern
):
    both = anndata.read_h5ad(files[0])
    names = zip(both.var["ensembl_id"], both.var["gene_symbol"], strict=True)
    both.var = pd.DataFrame(index=[pattern.format(id=i, symbol=symbol) for i, symbol in names])
    path = write(both, tmp_path / "both.h5ad")
    with pytest.raises(InputError, match="each has an Ensembl id with more around it") as raised:
        build(tmp_path / "store", [path], vocabulary)
    extracting = re.search(r'extract\("(.*?)"', str(raised.value))[1]
    both.var_names = both.var_names.str.extract(extracting, expand=False)
    write(both, path)
    mended, _ = build(tmp_path / "store", [path], vocabulary)
    by_id, _ = build(tmp_path / "ids", [files[0]], vocabulary)
    for a, b in zip(mended.read(range(19)), by_id.read(range(19)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_ids_of_ensembl_are_not_said_to_have_more_around_them(tmp_path, vocabulary):
    strange = [f"ENSG9{n:010d}.2" for n in range(83)]
    path = write(with_ids(cells(), strange), tmp_path / "strange.h5ad")
    with pytest.raises(InputError, match=r"0 of 83 gene ids .* use a vocabulary with such ids"):
        build(tmp_path / "store", [path], vocabulary)


def test_another_species_is_refused(tmp_path, vocabulary):
    mouse = [f"ENSMUSG{n:011d}" for n in range(83)]
    path = write(with_ids(cells(), mouse), tmp_path / "mouse.h5ad")
    with pytest.raises(InputError, match=r"has mouse gene ids, but the vocabulary is of human"):
        build(tmp_path / "store", [path], vocabulary)
    with pytest.raises(InputError, match="has mouse gene ids, but `species` is human"):
        measure_corpus([path], open_counts, None, NO_RULES)
    corpus = measure_corpus([path], open_counts, None, NO_RULES, species="mouse")
    with pytest.raises(InputError, match='give `species`="mouse"'):
        build_vocabulary(corpus, symbols={}, special_tokens=V1_SPECIAL_TOKENS, species="human")


def test_orthologs(tmp_path, files, vocabulary):
    human = anndata.read_h5ad(files[0])
    mouse = with_ids(human, [f"ENSMUSG{n:011d}.3" for n in range(83)])
    path = write(mouse, tmp_path / "mouse.h5ad")
    pairs = [f"ENSMUSG{n:011d}\t{gene}" for n, gene in enumerate(human.var["ensembl_id"])]
    (tmp_path / "pairs.tsv").write_text("mouse\thuman\n" + "\n".join(pairs) + "\n")
    orthologs = read_orthologs(tmp_path / "pairs.tsv")
    translated, _ = build(tmp_path / "store", [path], vocabulary, orthologs=orthologs)
    for number in (4, 9):
        pairs.append(f"ENSMUSG{number:011d}\t{vocabulary.gene_ids[number - 1]}")
    (tmp_path / "pairs.tsv").write_text("mouse\thuman\n" + "\n".join(pairs) + "\n")
    ambiguous = TokenizerOptions(2048, orthologs=read_orthologs(tmp_path / "pairs.tsv"))
    survey = StoreBuild(tmp_path / "ambiguous", vocabulary, ambiguous, CountOptions(), [])
    survey.survey([path])
    (line,) = survey.describe()
    assert "81 of 83 gene ids are in the vocabulary; 2 have several orthologs" in line
    direct, _ = build(tmp_path / "human", [files[0]], vocabulary)
    for a, b in zip(translated.read(range(19)), direct.read(range(19)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_ortholog_table(tmp_path):
    path = tmp_path / "pairs.csv"
    gene = "ENSMUSG0000000000"
    pairs = [(f"{gene}1.2", "H1"), ("m2", "H1"), ("M3", "H2"), ("M3", "H3"), ("M4", ""), ("", "H5")]
    pairs.append((f"{gene}1", "H1"))
    path.write_text("mouse,human\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    assert read_orthologs(path) == {f"{gene}1": "H1", "M2": "H1", "M3": ""}
    path.write_text("mouse,human\nM3,H2\nM3,H3\n")
    with pytest.raises(InputError, match="exactly one ortholog"):
        read_orthologs(path)
    path.write_text("mouse\nM3\n")
    with pytest.raises(InputError, match="has 1 column"):
        read_orthologs(path)
    path.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(InputError, match="no table"):
        read_orthologs(path)
    with pytest.raises(InputError, match="does not exist"):
        read_orthologs(tmp_path / "nothing.tsv")


def test_rules_drop_cells_and_say_how_many(tmp_path, files, vocabulary):
    adata = anndata.read_h5ad(files[2])
    rules = QualityRules("filter_pass", {"cell_type": ["B"]}, None, None, 20)
    store, counts = build(tmp_path / "store", [files[2]], vocabulary, quality=rules)
    passes = (adata.obs["filter_pass"] == 1) & (adata.obs["cell_type"] != "B")
    enough = np.asarray((adata.X > 0).sum(1)).ravel() >= 20
    assert store.cell_ids.tolist() == adata.obs_names[passes & enough].tolist()
    dropped = json.loads((store.folder / "provenance.json").read_text())["counts"]["dropped"]
    assert sum(dropped.values()) == adata.n_obs - len(store) and len(dropped) == 4
    assert counts["dropped"] == dropped and "filter_pass is not 1" in dropped


@pytest.mark.parametrize("special_tokens", [V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS])
def test_cells_in_memory(vocabulary, special_tokens):
    vocabulary = GeneVocabulary(
        vocabulary.gene_ids, vocabulary.symbols, vocabulary.medians, special_tokens
    )
    adata = cells(5, "m")
    before = adata.copy()
    tokenized = tokenize_cells(adata, vocabulary, max_length=12)
    special = len(special_tokens) - 2
    expected = [row[: 12 - special] for row in slow_tokens(adata, vocabulary)]
    rows = [row.tolist() for row in tokenized.read(range(len(tokenized)))]
    if special:
        assert all(row[0] == vocabulary.cls_id and row[-1] == vocabulary.eos_id for row in rows)
        rows = [row[1:-1] for row in rows]
    assert rows == [row for row in expected if row]
    assert tokenized.rows.tolist() == [n for n, row in enumerate(expected) if row]
    assert tokenized.cell_ids.tolist() == adata.obs_names[tokenized.rows].tolist()
    assert tokenized.lengths.tolist() == [len(row) + special for row in rows]
    assert tokenized.dropped == {NO_GENE: 1} and tokenized.max_length == 12
    assert (adata.X != before.X).nnz == 0 and adata.obs.equals(before.obs)


def test_no_cell_is_left(vocabulary):
    adata = cells()[[57 // 2]].copy()
    with pytest.raises(InputError):
        tokenize_cells(adata, vocabulary)


@pytest.mark.parametrize("kind", [Path, str])
def test_a_path_gives_the_same_as_what_it_holds(vocabulary, tmp_path, kind):
    adata = cells()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    given = adata, kind(tmp_path / "cells.h5ad")
    expected, found = (tokenize_cells(each, vocabulary) for each in given)
    assert [row.tolist() for row in found.read(range(len(found)))] == [
        row.tolist() for row in expected.read(range(len(expected)))
    ]
    assert found.dropped == expected.dropped and list(found.cell_ids) == list(expected.cell_ids)


@pytest.mark.parametrize("length", [-1, 0])
def test_no_room_for_a_gene(vocabulary, length):
    with pytest.raises(InputError, match="leaves no room"):
        tokenize_cells(cells(), vocabulary, max_length=length)
    v2 = GeneVocabulary(np.array(["G"]), [""], np.ones(1), V2_SPECIAL_TOKENS)
    check_max_length(3, v2)
    with pytest.raises(InputError, match="leaves no room"):
        check_max_length(2, v2)


def test_repeated_gene_ids_are_summed(vocabulary):
    adata = cells(6)
    split = sparse.hstack([adata.X, adata.X[:, :10]]).tocsr().astype(np.int32)
    ids = [*adata.var["ensembl_id"], *(f"{gene}.7" for gene in adata.var["ensembl_id"][:10])]
    adata.obs["n_counts"] *= 2
    obs = adata.obs[["n_counts"]]
    var = pd.DataFrame({"ensembl_id": ids}, index=[f"g{n}" for n in range(len(ids))])
    twice = anndata.AnnData(split, obs=obs, var=var)
    summed = adata.copy()
    dense = summed.X.toarray()
    dense[:, :10] *= 2
    summed.X = sparse.csr_matrix(dense)
    a, b = (tokenize_cells(each, vocabulary) for each in (twice, summed))
    for one, other in zip(a.read(range(len(a))), b.read(range(len(b))), strict=True):
        np.testing.assert_array_equal(one, other)
    assert a.match.matched > a.match.genes == b.match.genes
