"""Classes of genes and cells: every form in which they are written, and what is left out."""

import json

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.classification.labels import (
    Labels,
    read_cell_labels,
    read_gene_labels,
)

VOCABULARY = GeneVocabulary(
    gene_ids=np.array([f"ENSG{i:011d}" for i in range(8)]),
    symbols=np.array([f"SYM{i}" for i in range(8)]),
    medians=np.ones(8),
    id_mapping={"OLD5": "ENSG00000000005"},
)
IDS = list(VOCABULARY.gene_ids)
EXPECTED = {IDS[3]: "late", IDS[1]: "late", IDS[4]: "early", IDS[5]: "early"}
ROWS = [("late", IDS[3]), ("late", "SYM1"), ("early", f"{IDS[4]}.7"), ("early", "old5")]


def write(folder, kind: str) -> str:
    table = pd.DataFrame(ROWS, columns=["class", "gene"])
    path = folder / f"genes.{kind}"
    if kind == "json":
        path.write_text(json.dumps({"late": [IDS[3], "SYM1"], "early": [f"{IDS[4]}.7", "old5"]}))
    elif kind == "csv":
        table.rename(columns={"class": "Label", "gene": "Ensembl_ID"}).to_csv(path, index=False)
    elif kind == "parquet":
        table.astype("category").assign(note=1.5).to_parquet(path)
    elif kind == "lists":
        for name in ("late", "early"):
            genes = [gene for each, gene in ROWS if each == name]
            (folder / f"{name}.txt").write_text("\n".join(genes) + "\n\n")
        return f"late={folder}/late.txt, early={folder}/early.txt"
    else:
        table.to_csv(path, sep="\t", index=False)
    return str(path)


@pytest.mark.parametrize("kind", ["json", "csv", "tsv", "txt", "parquet", "lists"])
def test_classes_are_read_from_every_form_in_their_order(tmp_path, kind):
    labels = read_gene_labels(write(tmp_path, kind), VOCABULARY)
    assert dict(labels.of) == EXPECTED
    assert labels.classes == ("late", "early")
    assert all(not len(ids) for ids in labels.dropped.values())


def gene_file(folder, rows: list[tuple[str, str]]):
    path = folder / "genes.tsv"
    pd.DataFrame(rows, columns=["class", "ensembl_id"]).to_csv(path, sep="\t", index=False)
    return path


def test_unknown_and_repeated_genes_are_counted_and_named(tmp_path):
    extra = [("late", "ENSG99999999999"), ("early", "SYM4"), ("late", "NOPE")]
    labels = read_gene_labels(gene_file(tmp_path, ROWS + extra), VOCABULARY)
    assert dict(labels.of) == EXPECTED
    assert {reason: list(ids) for reason, ids in labels.dropped.items() if len(ids)} == {
        "not in the vocabulary": ["ENSG99999999999", "NOPE"],
        "listed again in the same class": ["SYM4"],
    }
    classes, unknown, repeated = labels.describe("gene")
    assert all(part in classes for part in ("4 genes", "late 2", "early 2"))
    assert unknown.startswith("2 ") and "ENSG99999999999, NOPE" in unknown
    assert repeated.startswith("1 ") and "SYM4" in repeated


def test_a_gene_in_two_classes_is_refused_or_dropped_from_both(tmp_path):
    path = gene_file(tmp_path, [*ROWS, ("early", IDS[3]), ("early", IDS[6])])
    with pytest.raises(InputError, match=f'first "{IDS[3]}" in "late" and "early"'):
        read_gene_labels(path, VOCABULARY)
    labels = read_gene_labels(path, VOCABULARY, conflicts="drop")
    assert IDS[3] not in labels.of.index and len(labels.of) == 4
    assert list(labels.dropped["in several classes"]) == [IDS[3]]


def test_bad_gene_files_are_refused(tmp_path):
    def refused(text: str, path, **options):
        with pytest.raises(InputError) as caught:
            read_gene_labels(path, VOCABULARY, **options)
        assert text in str(caught.value) and "\n" not in str(caught.value)

    def file(name: str, text: str):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    refused("does not exist", tmp_path / "none.csv")
    refused("must end in one of", file("genes.xlsx", "x"))
    refused("no column with classes", file("a.csv", "kind,gene\nx,SYM1\n"))
    refused("no column with genes", file("b.csv", "class,name of it\nx,SYM1\n"))
    refused("holds no row", file("c.csv", "class,gene\n"))
    refused("is no JSON", file("d.json", "{"))
    refused('"a" is in it twice', file("e.json", '{"a": ["x"], "b": ["y"], "a": ["z"]}'))
    refused("must be of the form", file("e.json", '["SYM1"]'))
    refused("is no Parquet table", file("f.parquet", "no"))
    refused("none of the 2 genes", file("g.csv", "class,gene\na,MOUSE1\nb,MOUSE2\n"))
    refused('class "b"', file("h.csv", "class,gene\na,SYM1\nb,MOUSE2\n"))
    refused("1 class", file("i.csv", "class,gene\na,SYM1\na,SYM2\n"))
    refused("class=file", f"a={tmp_path / 'a.csv'},b")
    refused("must be one of refuse, drop", file("j.csv", "class,gene\na,SYM1\n"), conflicts="keep")


def obs(values, index=None) -> pd.DataFrame:
    return pd.DataFrame({"kind": values}, index=index or [f"c{i}" for i in range(len(values))])


def test_labels_of_cells_are_sorted_and_missing_and_rare_ones_are_counted():
    values = ["b"] * 50 + ["a"] * 45 + ["rare"] * 2 + [None, "", np.nan]
    for table in (obs(values), obs(pd.Categorical(values))):
        labels = read_cell_labels(table, "kind", min_fraction=0.03)
        assert labels.classes == ("a", "b")
        assert dict(labels.of.value_counts()) == {"b": 50, "a": 45}
        assert labels.of.index[0] == "c0" and labels.of["c50"] == "a"
        assert list(labels.dropped["no label"]) == ["c97", "c98", "c99"]
        assert list(labels.dropped["label too rare"]) == ["c95", "c96"]


def test_the_fraction_of_rare_labels_is_of_labelled_cells():
    """The original drops cell types below 0.5 % of a tissue's cells."""
    table = obs(["a"] * 796 + ["b"] * 4 + [None] * 200)
    assert read_cell_labels(table, "kind", 0.005).classes == ("a", "b")
    with pytest.raises(InputError, match='1 class \\("a"\\)'):
        read_cell_labels(table, "kind", 0.0051)


def test_only_wanted_classes_take_part():
    labels = read_cell_labels(obs(["a", "b", "c", None]), "kind", wanted=["c", "a"])
    assert dict(labels.of) == {"c0": "a", "c2": "c"}
    assert list(labels.dropped["label not asked for"]) == ["c1"]


def test_numbers_that_name_clusters_are_classes():
    expected = {"c0": "0", "c1": "1", "c2": "1"}
    assert dict(read_cell_labels(obs([0, 1, 1]), "kind").of) == expected
    with_missing = read_cell_labels(obs([0.0, 1.0, 1.0, np.nan]), "kind")
    assert dict(with_missing.of) == expected
    assert list(with_missing.dropped["no label"]) == ["c3"]
    assert set(read_cell_labels(obs([True, False]), "kind").of) == {"True", "False"}


@pytest.mark.parametrize(
    ("table", "column", "text"),
    [
        (obs(["a", "b"]), "knid", 'did you mean "kind"'),
        (obs([0.5, 1.0]), "kind", "measurements"),
        (obs([np.inf, 1.0]), "kind", "measurements"),
        (obs([1e300, 1.0]), "kind", "measurements"),
        (obs([None, None]), "kind", "has 0 classes; a"),
        (obs(["a", "a"]), "kind", "1 class"),
        (obs([None, None]), "kind", "0 class"),
    ],
)
def test_bad_columns_are_refused(table, column, text):
    with pytest.raises(InputError, match=text):
        read_cell_labels(table, column)


def test_a_class_that_is_not_there_is_refused():
    with pytest.raises(InputError, match='no class "z"; it has a, b'):
        read_cell_labels(obs(["a", "b"]), "kind", wanted=["a", "z"])


def test_labels_can_leave_ids_out_with_a_reason():
    labels = Labels(("a", "b"), pd.Series({"g1": "a", "g2": "b", "g3": "b"}), {"before": ["x"]})
    left = labels.without(["g2", "other"], "absent")
    assert dict(left.of) == {"g1": "a", "g3": "b"}
    assert list(left.dropped["absent"]) == ["g2"] and list(left.dropped["before"]) == ["x"]
    with pytest.raises(InputError, match='class "a" of the labels'):
        labels.without(["g1"], "absent")


@pytest.mark.reference_data
@pytest.mark.parametrize(
    ("name", "conflicts", "sizes"),
    [
        ("dosage_sensitivity_TFs", "refuse", (122, 368)),
        ("bivalent_vs_lys4_only", "drop", (95, 77)),
        ("bivalent_vs_no_methyl", "drop", (94, 38)),
        ("tf_regulatory_range", "refuse", (46, 130)),
        ("n1_network", "refuse", (100, 195)),
        ("n1_target", "refuse", (570, 570)),
    ],
)
def test_the_lists_of_the_papers_tasks_are_read(data_dir, name, conflicts, sizes):
    """Class sizes after repeated genes, and those in both classes, are gone."""
    table = pd.read_csv(data_dir / "genes" / f"{name}.tsv", sep="\t")
    ids = np.array(sorted(table["ensembl_id"].unique()))
    vocabulary = GeneVocabulary(ids, np.full(len(ids), ""), np.ones(len(ids)))
    labels = read_gene_labels(data_dir / "genes" / f"{name}.tsv", vocabulary, conflicts)
    assert tuple(labels.of.value_counts()[list(labels.classes)]) == sizes
    if conflicts == "drop":
        with pytest.raises(InputError, match="in several classes"):
            read_gene_labels(data_dir / "genes" / f"{name}.tsv", vocabulary)
