"""Splits: no leak, every class in every fold, the original's folds, and what is refused."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedKFold

from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.classification.config import SplitRule, TaskConfig
from geneformer_jax.finetuning.classification.given_split import given_split
from geneformer_jax.finetuning.classification.protocol import leak_warnings
from geneformer_jax.finetuning.classification.splits import Split, make_split
from geneformer_jax.finetuning.config import MultitaskConfig


def labels_of(sizes: dict[str, int]) -> pd.Series:
    names = np.repeat(list(sizes), list(sizes.values()))
    return pd.Series(names, index=[f"id{i}" for i in range(len(names))], dtype=object)


def donors_of(labels: pd.Series, groups: int, name: str = "donor") -> pd.Series:
    values = [f"d{i % groups}" for i in range(len(labels))]
    return pd.Series(values, index=labels.index, name=name)


def nested_donors(per_class: int = 3, cells: int = 20) -> tuple[pd.Series, pd.Series]:
    """Donors of one class each, with different numbers of cells."""
    rows = [
        (kind, f"{kind}{donor}")
        for kind in ("healthy", "ill")
        for donor in range(per_class)
        for _ in range(cells * (donor + 1))
    ]
    table = pd.DataFrame(
        rows, columns=["class", "donor"], index=[f"c{i}" for i in range(len(rows))]
    )
    return table["class"], table["donor"]


def test_gene_folds_are_those_of_the_original():
    labels = labels_of({"sensitive": 122, "insensitive": 368})
    split = make_split(labels, SplitRule())
    original = StratifiedKFold(n_splits=5, shuffle=True, random_state=0)
    for fold, (train, test) in enumerate(original.split(labels.index, labels)):
        assert list(split.ids(fold, "train")) == list(labels.index[train])
        assert list(split.ids(fold, "test")) == list(labels.index[test])


@pytest.mark.parametrize("folds", [1, 2, 5])
@pytest.mark.parametrize("valid_fraction", [0.0, 0.25])
@pytest.mark.parametrize("groups", [None, "mixed", "nested"])
def test_sides_are_disjoint_whole_and_have_every_class(folds, valid_fraction, groups):
    labels, donors = nested_donors(per_class=8, cells=4)
    if groups == "mixed":
        donors = donors_of(labels, 16)
    chosen = None if groups is None else donors
    split = make_split(labels, SplitRule(folds, 0.25, valid_fraction), chosen)
    assert split.folds == folds
    tested = []
    for fold in range(folds):
        sides = {side: list(split.ids(fold, side)) for side in ("train", "valid", "test")}
        everyone = sides["train"] + sides["valid"] + sides["test"]
        assert sorted(everyone) == sorted(labels.index)
        assert bool(sides["valid"]) == bool(valid_fraction)
        for side in filter(None, sides.values()):
            assert set(labels[side]) == {"healthy", "ill"}
        if groups:
            seen = [set(donors[side]) for side in sides.values()]
            assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
        tested += sides["test"]
    if folds > 1:
        assert sorted(tested) == sorted(labels.index)
    elif groups is None:
        assert abs(len(tested) / len(labels) - 0.25) < 0.01


def test_another_seed_deals_out_otherwise_and_the_same_seed_alike():
    labels = labels_of({"a": 30, "b": 30})
    tables = [make_split(labels, SplitRule(seed=seed)).table for seed in (1, 1, 2)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0].equals(tables[2])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_written_split_is_read_back_as_a_given_one(tmp_path, suffix):
    labels = labels_of({"a": 12, "b": 12})
    split = make_split(labels, SplitRule(3, valid_fraction=0.2))
    split.write(tmp_path / f"split.{suffix}")
    again = given_split(tmp_path / f"split.{suffix}", labels)
    pd.testing.assert_frame_equal(again.table, split.table, check_dtype=False)


def test_lists_of_ids_are_a_split_of_one_fold(tmp_path):
    labels = labels_of({"a": 4, "b": 4})
    (tmp_path / "train.txt").write_text("id0\nid4\nid1\n\nid5\n")
    (tmp_path / "test.csv").write_text("cell_id,other\nid2,x\nid6,y\n")
    split = given_split({"train": tmp_path / "train.txt", "test": tmp_path / "test.csv"}, labels)
    assert list(split.ids(0, "train")) == ["id0", "id4", "id1", "id5"]
    assert list(split.ids(0, "test")) == ["id2", "id6"]
    assert split.folds == 1


def refused(text: str, function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert text in message and "\n" not in message
    return message


def test_small_classes_are_told_with_their_size_and_the_least():
    message = refused("too few ids", make_split, labels_of({"a": 9, "b": 3}), SplitRule())
    assert '"b" 3' in message and "needs 5" in message and "`folds`=3" in message
    labels, donors = nested_donors(per_class=3)
    message = refused("too few groups", make_split, labels, SplitRule(), donors)
    assert '"healthy" 3' in message and "needs 5" in message and "donor" in message


def test_bad_splits_are_refused(tmp_path):
    labels = labels_of({"a": 6, "b": 6})
    table = make_split(labels, SplitRule(2)).table

    def given(changed: pd.DataFrame, groups: pd.Series | None = None) -> Split:
        changed.to_csv(tmp_path / "split.csv", index=False)
        return given_split(tmp_path / "split.csv", labels, groups)

    refused("unknown", given, table.assign(id=table["id"].replace("id3", "id33")))
    refused("twice in fold", given, pd.concat([table, table[:1]]))
    refused('side "tset"', given, table.assign(side=table["side"].replace("test", "tset")))
    refused("several sides", given, table, donors_of(labels, 2))
    refused("no column with sides", given, table[["id", "fold"]])
    only_a = table[~((table["side"] == "test") & table["id"].isin(labels.index[6:]))]
    refused("fewer than two classes on its test side", given, only_a)
    refused("on its train side", given, table[table["side"] == "test"])
    refused("does not exist", given_split, tmp_path / "none.csv", labels)
    (tmp_path / "x.txt").write_text("id0\n")
    refused('"exam" is no side', given_split, {"exam": tmp_path / "x.txt"}, labels)


def test_a_class_that_only_the_test_side_has_is_refused(tmp_path):
    labels = labels_of({"a": 4, "b": 4, "c": 2})
    side = ["train"] * 3 + ["test"] + ["train"] * 3 + ["test"] + ["test"] * 2
    pd.DataFrame({"id": labels.index, "side": side}).to_csv(tmp_path / "s.tsv", sep="\t")
    refused('class "c" is on the test side', given_split, tmp_path / "s.tsv", labels)


def test_bad_rules_and_ids_are_refused():
    refused("at least 1", SplitRule, 0)
    refused("between 0 and 1", SplitRule, 1, 1.0)
    refused("in [0, 1)", SplitRule, 5, 0.2, 1.0)
    labels = labels_of({"a": 5, "b": 5})
    refused("1 class", make_split, labels[:5], SplitRule())
    refused("occurs twice", make_split, pd.concat([labels, labels[:1]]), SplitRule())
    refused("have no value", make_split, labels, SplitRule(2), donors_of(labels, 5)[:-1])
    refused("2 folds need as many", make_split, labels, SplitRule(2), donors_of(labels, 1))


CANNOT = {
    # labels, donors, rule -> what is wrong, what can be had
    "conditions of two donors": (
        nested_donors(per_class=2),
        TaskConfig(unit="cell", folds=1, test_fraction=0.2, valid_fraction=0.125),
        'groups ("donor") for a train, a valid and a test side: "healthy" 2, "ill" 2',
        {"test_fraction": 0.3, "valid_fraction": 0.0},
    ),
    "five donors": (
        nested_donors(per_class=3),
        TaskConfig(unit="cell", folds=1, test_fraction=0.1, valid_fraction=0.0),
        'of 6 groups ("donor") that is 1, fewer than the 2 classes',
        {"test_fraction": 0.2},
    ),
    "few cells": (
        (labels_of({"a": 5, "b": 5}), None),
        SplitRule(1, 0.1),
        "of 10 ids that is 1, fewer than the 2 classes",
        {"test_fraction": 0.15},
    ),
    "several targets of few cells": (
        (labels_of({"a": 4, "b": 4, "c": 4}), None),
        MultitaskConfig(classes="x"),
        "`config.targets.valid_fraction` is 0.1: of 9 cells that is 1, fewer than the 3 classes",
        {"valid_fraction": 0.25},
    ),
}


@pytest.mark.parametrize("name", CANNOT)
def test_a_split_that_cannot_be_had_names_one_that_can(name):
    (labels, donors), rule, why, changes = CANNOT[name]
    message = refused(why, make_split, labels, rule, donors)
    assert "test_size" not in message
    for field, value in changes.items():
        assert f"{rule.key(field)}={value:g}" in message
    assert make_split(labels, dataclasses.replace(rule, **changes), donors).folds == 1


def test_nothing_is_promised_where_no_split_can_be_had():
    labels = labels_of({"a": 6, "b": 6})
    donors = pd.Series(["d0", "d1"] * 3 + ["d0"] * 6, labels.index, name="donor")
    message = refused('"b" 1, "a" 2', make_split, labels, SplitRule(1, 0.5, 0.5), donors)
    assert "would do" not in message and "give more" in message


def test_of_mixed_donors_a_side_is_taken_whose_classes_can_be_learned():
    """All cells of class c are of two donors, which must not be tested together."""
    labels = labels_of({"a": 40, "b": 40, "c": 8})
    donors = donors_of(labels, 8)
    donors[labels == "c"] = ["d0", "d1"] * 4
    for seed in range(8):
        split = make_split(labels, SplitRule(1, 0.25, seed=seed), donors)
        assert set(labels[split.ids(0, "test")]) <= set(labels[split.ids(0, "train")])


def test_a_split_that_leaks_donors_is_warned_of_and_one_by_donor_is_not():
    labels = labels_of({"a": 20, "b": 20})
    obs = pd.DataFrame({"Donor": donors_of(labels, 8), "size": 1.0}, index=labels.index)
    by_cell = make_split(labels, SplitRule(4))
    (line,) = leak_warnings(obs, by_cell)
    seen = [set(obs.loc[by_cell.ids(0, side), "Donor"]) for side in ("train", "test")]
    both = len(seen[0] & seen[1])
    assert line.startswith(f'warning: {both} values of "Donor" stand on both sides') and both > 2
    by_donor = make_split(labels, SplitRule(4), obs["Donor"])
    assert not leak_warnings(obs, by_donor)
    assert not leak_warnings(obs, by_cell, group="Donor")
    assert not leak_warnings(obs.assign(Donor="one"), by_cell)
