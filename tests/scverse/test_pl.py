"""Figures hold the numbers that were written, on the Axes that were given, on any screen."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

import geneformer_jax as gf
from tests.helpers.toy import toy_cells

PROJECT = Path(__file__).resolve().parents[2]
EDITS = 80


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


@pytest.fixture
def adata():
    """Cells with results as `gf.tl.perturb` and `gf.tl.umap` write them, of numbers made up."""
    rng = np.random.default_rng(0)
    names = [f"Gene{n}" for n in range(EDITS)]
    numbers = {
        name: rng.normal(size=EDITS) * 1e-3
        for name in ("Shift_to_goal_end", "Shift_to_start", "Within_cell_shift", "Like_rank_shift")
    }
    fractions = {
        name: rng.uniform(size=EDITS)
        for name in ("Goal_end_FDR", "Matched_FDR", "Matched_percentile", "Mean_rank", "Coverage")
    }
    table = pd.DataFrame({"Gene_name": names, "Ensembl_ID": names, **numbers, **fractions})
    table["N_Detections"] = rng.integers(5, 40, EDITS)
    table["Sig"] = (table["Goal_end_FDR"] < 0.05).astype(int)
    asked = pd.DataFrame(
        [("like_rank", "Is it so?", "3 of 80 genes", "it is"), ("donors", "?", "not made: x", "")],
        columns=["control", "what it asks", "result", "verdict"],
    )
    states = {"column": "kind", "start": "a", "goal": "b"}
    cells = toy_cells(30)
    cells.uns["perturbation"] = {
        "params": {"goal": "b", "measure": "state_shift", "states": states},
        "statistics": table,
        "controls": asked,
    }
    cells.uns["cosines"] = {
        "params": {"measure": "mean_gene_cosine"},
        "statistics": table[["Gene_name", "N_Detections"]].assign(Cosine_sim_mean=0.9),
    }
    cells.uns["other"] = {"mode": "cell"}
    positions = rng.normal(size=(30, 2)).astype(np.float32)
    positions[4] = np.nan
    cells.obsm["X_geneformer_umap"] = positions
    return cells


def points(axes):
    """All points drawn, x and y, in one order."""
    drawn = np.concatenate(
        [each.get_offsets() for each in axes.collections if len(each.get_sizes())]
    )
    return np.array(sorted(map(tuple, np.ma.getdata(drawn))))


def test_a_volcano_has_a_point_for_each_edit(adata):
    axes = gf.pl.volcano(adata, show=False)
    table = adata.uns["perturbation"]["statistics"]
    expected = np.c_[table["Shift_to_goal_end"], -np.log10(table["Goal_end_FDR"])]
    np.testing.assert_allclose(points(axes), np.array(sorted(map(tuple, expected))))
    assert axes.get_xlabel() == "mean shift towards b"


def test_ranked_shifts_ascend(adata):
    axes = gf.pl.ranked_shifts(adata, show=False)
    shifts = np.sort(adata.uns["perturbation"]["statistics"]["Shift_to_goal_end"])
    np.testing.assert_allclose(points(axes), np.c_[np.arange(1, EDITS + 1), shifts])
    without_states = gf.pl.ranked_shifts(adata, key="cosines", show=False)
    assert without_states.get_ylabel() == "mean gene cosine, mean over cells"


def test_cells_are_drawn_where_they_have_a_place(adata):
    axes = gf.pl.umap(adata, "kind", show=False)
    known = np.delete(adata.obsm["X_geneformer_umap"], 4, axis=0)
    np.testing.assert_allclose(points(axes), np.array(sorted(map(tuple, known))))
    gene = adata.var_names[3]
    first, second = gf.pl.umap(adata, ["kind", gene], show=False)
    assert first.figure is second.figure
    (colours,) = (each for each in second.collections if each.get_array() is not None)
    np.testing.assert_array_equal(colours.get_array(), np.delete(adata[:, gene].X.toarray(), 4))


def test_controls_are_one_figure(adata):
    panel = gf.pl.controls(adata, show=False)
    labels = [axes.get_xlabel() for axes in panel]
    table = adata.uns["perturbation"]["statistics"]
    compared = table[table["N_Detections"] >= 10]
    beside = panel[labels.index("mean shift towards a")]
    expected = compared[["Shift_to_start", "Shift_to_goal_end"]].to_numpy()
    np.testing.assert_allclose(points(beside), np.array(sorted(map(tuple, expected))))
    by_rank = compared[["Mean_rank", "Within_cell_shift"]].to_numpy()
    np.testing.assert_allclose(points(panel[0]), np.array(sorted(map(tuple, by_rank))))
    told = panel[-1].texts[0].get_text()
    assert told == "Is it so? It is.\n    3 of 80 genes."


@pytest.mark.parametrize("draw", [gf.pl.volcano, gf.pl.ranked_shifts, gf.pl.umap])
def test_axes_that_are_given_are_drawn_on(draw, adata):
    figure, (left, right) = plt.subplots(1, 2)
    assert draw(adata, ax=right, **({"color": "kind"} if draw is gf.pl.umap else {})) is right
    assert plt.get_fignums() == [figure.number]
    assert not left.collections and right.collections


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "begins"), [("png", b"\x89PNG"), ("PDF", b"%PDF"), ("svg", b"<?xml")]
)
def test_figures_are_saved_in_the_format_of_the_name(suffix, begins, adata, tmp_path):
    gf.pl.volcano(adata, save=tmp_path / f"figure.{suffix}")
    assert (tmp_path / f"figure.{suffix}").read_bytes().startswith(begins)


@pytest.mark.slow
def test_what_is_shown(adata, monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    gf.pl.volcano(adata, show=False)
    gf.pl.volcano(adata, save=tmp_path / "one.png")
    gf.pl.volcano(adata, ax=plt.gca())
    assert shown == []
    assert gf.pl.volcano(adata).figure is shown[0]
    gf.pl.controls(adata, save=tmp_path / "two.png", show=True)
    assert len(shown) == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: gf.pl.umap("cells", "kind"), ("`adata` is 'cells'",)),
        (lambda a: gf.pl.umap(a.obs, "kind"), ("`adata` is a DataFrame",)),
        (lambda a: gf.pl.umap(a, "kin"), ("`color` is 'kin'", 'did you mean "kind"')),
        (lambda a: gf.pl.umap(a, 3), ("`color` is 3",)),
        (lambda a: gf.pl.umap(a, a.var_names[0], layer="x"), ("no layer 'x'",)),
        (lambda a: gf.pl.umap(a, "kind", basis="X_pca"), ('"X_pca_umap"', "gf.tl.umap")),
        (lambda a: gf.pl.umap(a, ["kind", "kind"], ax=plt.gca()), ("2 colors",)),
        (lambda a: gf.pl.volcano(a, key="perturb"), ('did you mean "perturbation"',)),
        (lambda a: gf.pl.volcano(a, key="other"), ("gf.tl.perturb",)),
        (lambda a: gf.pl.volcano(a, key="cosines"), ("no p-values", "gf.pl.ranked_shifts")),
        (lambda a: gf.pl.volcano(a, ax=3), ("`ax` is 3", "Axes")),
        (lambda a: gf.pl.volcano(a, show="no"), ("`show` is 'no'",)),
        (lambda a: gf.pl.volcano(a, save="figure"), (".png, .pdf, .svg",)),
        (lambda a: gf.pl.volcano(a, save=True), ("`save` is True",)),
        (lambda a: gf.pl.controls(a, key="cosines"), ("no controls",)),
    ],
)
def test_wrong_arguments_end_in_one_line(call, words, adata):
    with pytest.raises(gf.InputError) as told:
        call(adata)
    message = str(told.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []
    assert len(plt.get_fignums()) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["TkAgg", "module://matplotlib_inline.no_such_backend"])
def test_without_a_display_nothing_fails(backend, adata, tmp_path):
    """As in a kernel on a server; a backend that cannot be had is replaced."""
    adata.write_h5ad(tmp_path / "cells.h5ad")
    code = (
        "import anndata, warnings; import geneformer_jax as gf; warnings.simplefilter('error');"
        "a = anndata.read_h5ad('cells.h5ad');"
        "print(gf.pl.volcano(a).get_xlabel(), len(gf.pl.controls(a)), gf.pl.umap(a, 'kind'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": "/usr/bin", "MPLBACKEND": backend, "PYTHONPATH": str(PROJECT),
             "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mean shift towards b")
    assert ad.read_h5ad(tmp_path / "cells.h5ad").n_obs == 30
