"""Kept and dropped cells by label, beside a count of the whole files."""

import json

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.cells.store import label_counts
from geneformer_jax.cells.tokenization.quality_control import QualityRules
from tests.helpers.small_stores import build, cells, write

COLUMNS = ["kind", "doublet", "barcode", "depth", "site?"]


def study(folder):
    """Two files with labels, ids and numbers; the second lacks a column."""
    files = {name: cells(seed, name, n_cells=30) for seed, name in enumerate("ab")}
    for name, adata in files.items():
        number = np.arange(adata.n_obs)
        kind = np.array(["B", "T", "NK"], object)[number % 3]
        kind[4] = None
        adata.obs = adata.obs[["n_counts"]].assign(
            kind=pd.Categorical(kind), doublet=number % 7 == 0, depth=number / 7,
            barcode=[f"{name}{n}" for n in number],
        )  # fmt: skip
    files["a"].obs["site"] = "left"
    return {write(adata, folder / f"{name}.h5ad"): adata for name, adata in files.items()}


def slow_counts(files, kept, column):
    """Column by column of the files, cell by cell."""
    expected = {}
    for adata in files.values():
        for cell, row in adata.obs.iterrows():
            value = row.get(column)
            label = "no value" if pd.isna(value) else str(value)
            sides = expected.setdefault(label, {"kept": 0, "dropped": 0})
            sides["kept" if cell in kept else "dropped"] += 1
    return expected


def test_each_label_is_counted_in_provenance_and_report(tmp_path, vocabulary, monkeypatch, caplog):
    files, rules = study(tmp_path), QualityRules(total_sd=1.0, min_genes=10)
    monkeypatch.setattr(label_counts, "MAX_LABELS", 9)
    with caplog.at_level("INFO", "geneformer_jax"):
        store, counts = build(tmp_path / "store", files, vocabulary, COLUMNS, quality=rules)
    kept = set(store.cell_ids)
    assert 10 < len(kept) < 50
    expected = {name: slow_counts(files, kept, name) for name in ("kind", "doublet", "site")}
    assert counts["by_label"] == expected
    written = json.loads((store.folder / "provenance.json").read_text())["counts"]
    assert written["by_label"] == expected and "dropped_by_label" not in written["sources"][0]
    lines = caplog.text
    for label, sides in expected["kind"].items():
        share = sides["dropped"] / sum(sides.values())
        line = f"{label}: {sides['kept']} and {sides['dropped']} ({share:.0%} left out)"
        assert (line in lines) == (sides["dropped"] > 0)
        named = f"{label} ({sides['dropped']} of {sum(sides.values())})"
        (warning,) = [each for each in caplog.messages if "labels of kind" in each]
        assert (named in warning) == (share > 0.2)
    assert "by barcode" not in lines and "by depth" not in lines


def test_shards_and_later_files_are_counted_with_the_first(tmp_path, vocabulary):
    files, rules = study(tmp_path), QualityRules(total_sd=1.0, min_genes=10)
    whole = build(tmp_path / "whole", files, vocabulary, COLUMNS, quality=rules)[1]
    grown = [
        build(tmp_path / "grown", list(files)[:number], vocabulary, COLUMNS, quality=rules)[1]
        for number in (1, 2)
    ]
    assert grown[1]["by_label"] == whole["by_label"] != grown[0]["by_label"]


def test_nothing_is_read_or_said_where_no_cell_is_dropped(tmp_path, vocabulary, caplog):
    adata = cells(0, "a", n_cells=12)
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    adata.obs["kind"] = "B"
    path = write(adata, tmp_path / "a.h5ad")
    with caplog.at_level("INFO", "geneformer_jax"):
        _, counts = build(tmp_path / "store", [path], vocabulary, ["kind"])
    assert counts["by_label"] == {} and "left out, by" not in caplog.text


@pytest.mark.parametrize(("dropped", "warned"), [(2, False), (3, True)])
def test_a_warning_is_given_above_the_stated_fraction(dropped, warned):
    counts = {"kind": {"B": {"kept": 10 - dropped, "dropped": dropped}}}
    assert bool(label_counts.warnings_of(counts)) == warned
    assert any("WARNING" in line for line in label_counts.describe_labels(counts)) == warned
