"""The benchmark of held-out cells: what its tables say of planted truths."""

import importlib.util
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from absl import flags
from scipy import sparse
from sklearn.model_selection import GroupKFold

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "held_out_cells.py"


@pytest.fixture(scope="module")
def script():
    """The script as a module; its flags make room for those of commands."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT.stem] = module
    spec.loader.exec_module(module)
    # A copy: each flag that goes leaves the list too.
    for flag in list(flags.FLAGS.flags_by_module_dict()[SCRIPT.stem]):
        delattr(flags.FLAGS, flag.name)
    yield module
    del sys.modules[SCRIPT.stem]


def test_differences_are_paired_by_cell(script):
    rng = np.random.default_rng(0)
    components = rng.random(2_000) < 0.7
    better = components | (rng.random(2_000) < 0.1)
    table = script.beside_components({script.PCA: components, "model": better})
    apart = better.astype(float) - components
    assert (table.loc[script.PCA, ["minus PCA", "low", "high"]] == 0).all()
    assert table.loc["model", "minus PCA"] == apart.mean()
    # Of unpaired accuracies it would be some three times as wide.
    half = 1.96 * apart.std() / np.sqrt(len(apart))
    expected = [apart.mean() - half, apart.mean() + half]
    np.testing.assert_allclose(table.loc["model", ["low", "high"]], expected, atol=0.2 * half)


def test_draws_are_compared_draw_by_draw(script):
    rows = [(200, 0, script.PCA, 0.5), (200, 1, script.PCA, 0.7)]
    rows += [(200, 0, "model", 0.6), (200, 1, "model", 0.65)]
    (found,) = script.summarise_draws(rows).loc[[(200, "model")]].to_dict("records")
    expected = {"mean": 0.625, "minus PCA": 0.025, "sd": np.sqrt(2) * 0.075, "least": -0.05}
    assert found == pytest.approx({**expected, "draws ahead": 1})


def test_persons_are_held_out_whole(script):
    rng = np.random.default_rng(0)
    person, condition = np.arange(120) % 6, np.arange(120) % 2
    counts = sparse.csr_matrix(rng.poisson(1.0, (120, 80)))
    obs = pd.DataFrame(
        {
            "condition": np.array(["ill", "well"])[condition],
            "donor": person.astype(str),
            "n_counts": np.asarray(counts.sum(axis=1)).ravel(),
        },
        [str(number) for number in range(120)],
    )
    embeddings = {"condition": np.eye(2)[condition], "person": np.eye(6)[person]}
    held = script.Held(ad.AnnData(counts, obs), embeddings)
    ((title, table),) = script.by_person("marrow", held, "donor", GroupKFold(6))
    assert title.endswith("6 persons in 6 folds; the commonest is 0.500 of the cells")
    assert table.loc["condition"].to_list() == [1, 1, 6]
    # What a person's other cells would give away is no help.
    assert table.loc["person", "accuracy"] <= 0.5


def test_share_by_rank_has_an_interval_over_cells(script, monkeypatch):
    monkeypatch.setattr(script, "RESAMPLES", 40)
    cells, genes = 12, 60
    ranks = np.tile(np.arange(1, genes + 1), cells)
    noise = np.random.default_rng(0).normal(size=len(ranks))
    by_range = (ranks - 1) * 20 // genes
    # Cells differ, so that the interval has a width.
    scale = np.repeat(np.linspace(0, 4, cells), genes)
    shifts = pd.DataFrame(
        {
            "cell": np.repeat([f"cell{i}" for i in range(cells)], genes),
            "measure": "cell_cosine",
            "state": "",
            "rank": ranks,
            "value": by_range.astype(float),
        }
    )
    assert tuple(script.shares_over_cells(shifts)) == (1, 1)
    mixed = shifts.assign(value=by_range + scale * noise)
    low, high = script.shares_over_cells(mixed)
    assert 0.7 < low < script.share_by_rank(mixed) < high < 0.99
    assert script.share_by_rank(shifts.assign(value=noise)) < 0.1


def test_both_data_sets_have_every_shared_type(script):
    kinds = [set(names.values()) for names in script.SHARED_TYPES.values()]
    assert kinds[0] == kinds[1] == {"B", "CD14+ monocyte", "NK", "CD8 T", "CD4 T"}
