"""Names of states and genes, as people write them and as cells have them."""

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.embedder import Embedded
from geneformer_jax.embedding.states import state_embeddings
from geneformer_jax.inference.listed_genes import read_gene_lines, read_genes
from geneformer_jax.perturbation.cell_states import CellStates, read_state_names
from geneformer_jax.perturbation.engine.gene_sets import read_gene_sets
from geneformer_jax.perturbation.state_vectors import unit_vectors
from tests.helpers.toy import toy_vocabulary

GENES = [f"ENSG{i:011d}" for i in (0, 3, 5)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "Gene Symbol\nA\nB\nC\n"),
        ("list.txt", "A\nB, C # both\n\n"),
        ("list.txt", "\ufeffgene\nA\nB\nC"),
        ("list.txt", '"A"\n"B"\n"C"\n'),
        ("list", "A\tB\nC\n"),
        ("list.csv", "A\nB\nC\n"),
        ("list.csv", "\ufeffEnsembl Gene ID,x\nA,1\nB,2\nC,3\n"),
        ("list.tsv", "source\tHGNC symbol\nx y\tA\nx y\tB\nz\tC\n"),
        ("a,b.txt", "symbol\nA\nB\nC\n"),
    ],
)
def test_lists_of_genes_are_read_with_and_without_headings(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_genes(str(tmp_path / name)) == ["A", "B", "C"]


def test_genes_are_separated_by_commas_and_files_must_be_there(tmp_path):
    assert read_genes("A, B,,C") == ["A", "B", "C"] and read_genes("") == []
    for path in (tmp_path / "nowhere.txt", tmp_path / "nowhere.csv"):
        with pytest.raises(InputError, match="does not exist"):
            read_genes(str(path))
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match="names no gene"):
        read_gene_lines(tmp_path / "empty.txt")


def test_sets_with_an_unknown_gene_are_left_out_and_the_gene_is_named():
    vocabulary = toy_vocabulary()
    found = read_gene_sets(vocabulary, combinations=[GENES[:2], [GENES[2], "TP53"]])
    assert found.combinations == ((2, 5),) and found.unknown == ("TP53",)
    with pytest.raises(InputError, match='such as "TP53", that is not in the vocabulary'):
        read_gene_sets(vocabulary, combinations=[[GENES[0], "TP53"]])
    listed = read_gene_sets(vocabulary, genes=[*GENES, "TP53", GENES[0]])
    assert listed.listed == (2, 5, 7) and listed.unknown == ("TP53",)


def test_listed_states_are_found_as_wholes_first():
    obs = pd.DataFrame({"state": ["a, b", "c, d", "c", "d", None]})
    given = read_state_names("state", "a, b", "c", ["c, d,d"]).named_in(obs)
    assert given.names == ["a, b", "c", "c, d", "d"]
    assert CellStates("state", goal="c", alternatives="c, d").names == ["c", "c, d"]


def test_states_may_be_numbers():
    states = CellStates("cluster", goal=1, start=0.0, alternatives=(np.int64(2),))
    assert states.names == ["0", "1", "2"]
    # Whole numbers beside gaps are floats.
    table = pd.DataFrame({"cluster": [0.0, 1.0, 2.0, np.nan]}, index=list("abcd"))
    embedded = Embedded(np.eye(4, 3, dtype=np.float32)[:, None], table, (-1,))
    vectors = unit_vectors(state_embeddings(embedded, "cluster"), states, -1)
    np.testing.assert_array_equal(vectors, np.eye(3))
