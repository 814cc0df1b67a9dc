"""Measures of quality: high where labels show, low where they do not, and plain about losing."""

from unittest.mock import MagicMock

import jax
import numpy as np
import pandas as pd
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding import quality
from geneformer_jax.embedding.embedder import Embedded
from geneformer_jax.embedding.label_accuracy import label_accuracy
from geneformer_jax.embedding.quality import ACCURACY, describe_quality, measure_quality
from geneformer_jax.embedding.report import EmbeddingReport, EmbeddingReportConfig
from geneformer_jax.inference.random_control import random_model
from tests.helpers.toy import toy_model


@pytest.fixture(scope="module")
def cells() -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Representations in which three kinds are far apart, or do not show, or donors do."""
    rng = np.random.default_rng(0)
    kind, donor = np.arange(240) % 3, np.arange(240) // 3 % 2
    noise = rng.normal(size=(240, 6)).astype(np.float32)
    centres = rng.normal(size=(3, 6)) * 30
    by_donor = np.array([[-60.0], [60.0]])
    obs = pd.DataFrame(
        {"kind": np.array(["a", "b", "c"])[kind], "donor": np.array(["x", "y"])[donor]}
    )
    representations = {
        "model": noise,
        "random weights": noise[::-1] * 0.9,
        "apart": noise + centres[kind],
        "by donor": noise + centres[kind] + by_donor[donor],
    }
    return representations, obs


@pytest.fixture
def without_scib(monkeypatch):
    monkeypatch.setattr(quality, "has_scib", lambda: False)


def test_kinds_that_are_far_apart_score_high_and_noise_low(cells, without_scib):
    representations, obs = cells
    table = measure_quality(representations, obs, "kind")
    assert list(table.columns) == [ACCURACY, "silhouette", "NMI of k-means", "ARI of k-means"]
    assert (table.loc["apart", [ACCURACY, "NMI of k-means", "ARI of k-means"]] == 1).all()
    assert table.loc["apart", "silhouette"] > 0.9
    assert table.loc["model", ACCURACY] < 0.5
    assert (table.loc["model", ["NMI of k-means", "ARI of k-means"]] < 0.1).all()
    assert abs(table.loc["model", "silhouette"] - 0.5) < 0.05


def test_silhouette_is_its_definition(cells, without_scib):
    representations, obs = cells
    features, kinds = representations["by donor"], obs["donor"].to_numpy()
    apart = np.linalg.norm(features[:, None].astype(float) - features[None], axis=-1)
    values = []
    for i, kind in enumerate(kinds):
        own = kinds == kind
        own[i] = False
        a, b = apart[i, own].mean(), apart[i, kinds != kind].mean()
        values.append((b - a) / max(a, b))
    measured = measure_quality({"model": features}, obs, "donor").loc["model", "silhouette"]
    assert measured == pytest.approx((np.mean(values) + 1) / 2, abs=1e-5)


def test_losing_is_said_plainly(cells, without_scib):
    table = measure_quality(*cells, "kind").drop(index="by donor")
    lines = describe_quality(table, "kind")
    lost = [line for line in lines if "the model LOSES to apart" in line]
    assert len(lost) == 4
    swapped = table.rename(index={"model": "apart", "apart": "model"})
    won = [line for line in describe_quality(swapped, "kind") if "above every baseline" in line]
    assert len(won) == 4
    level = table.copy()
    level.loc["apart"] = level.loc["random weights"] = level.loc["model"] - 0.001
    assert sum("level with" in line for line in describe_quality(level, "kind")) == 4


def test_cells_without_a_label_or_alone_take_no_part(cells, without_scib):
    representations, obs = cells
    marked = obs.copy()
    marked.loc[:9, "kind"] = None
    marked.loc[10, "kind"] = "alone"
    table = measure_quality({"model": representations["apart"]}, marked, "kind")
    rest = {"model": representations["apart"][11:]}
    expected = measure_quality(rest, obs.iloc[11:].reset_index(drop=True), "kind")
    pd.testing.assert_frame_equal(table, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_number_that_is_none_is_refused_by_its_cell_before_measuring(cells, monkeypatch, bad):
    """scib-metrics makes a silhouette of exactly 0.5 of it."""
    monkeypatch.setattr(quality, "_simple_measures", None)
    representations, obs = cells
    named = obs.rename(index=lambda row: f"cell{row}")
    spoilt = representations["model"].astype(np.float64)
    spoilt[[7, 31], [2, 0]] = bad
    with pytest.raises(InputError) as error:
        measure_quality({"model": representations["apart"], "mine": spoilt}, named, "kind")
    message = str(error.value)
    assert message.startswith("mine: 2 of 240 rows") and "\n" not in message
    assert '"cell7" (row 7), "cell31" (row 31)' in message
    with pytest.raises(InputError, match="cell7"):
        label_accuracy(spoilt, named["kind"])
    with pytest.raises(InputError, match="239 rows for 240 cells"):
        measure_quality({"mine": spoilt[1:]}, named, "kind")


@pytest.mark.parametrize("asked", [{"color": ("kind",)}, {"quality": ("kind",)}, {"figures": True}])
def test_a_report_on_such_an_embedding_is_refused_before_anything_is_drawn(asked, tmp_path):
    rows = np.zeros((9, 1, 4), np.float32)
    rows[4, 0, 1] = np.inf
    table = pd.DataFrame({"kind": list("abcabcabc")}, index=[f"cell{i}" for i in range(9)])
    embedder = MagicMock()
    embedder.pass_.mode = "cell"
    embedded = Embedded(rows, table, (-1,))
    config = EmbeddingReportConfig(**asked)
    report = EmbeddingReport(config, embedder, embedded, None, tmp_path / "cells.h5ad")
    with pytest.raises(InputError, match=r'1 of 9 rows .*"cell4"'):
        report.make()
    assert not list(tmp_path.iterdir())


def test_columns_without_labels_are_refused(cells):
    _, obs = cells
    with pytest.raises(InputError, match="fewer than two different values"):
        quality.check_labels(obs.assign(one="same"), "one")
    with pytest.raises(InputError, match="fewer than two different values"):
        quality.check_labels(obs.assign(id=range(len(obs))), "id")
    with pytest.raises(InputError, match='batch column "one"'):
        quality.check_labels(obs.assign(one="same"), "kind", "one")


def test_a_random_model_has_the_shape_but_not_the_weights():
    trained = toy_model(seed=7, layers=1, positions=8)
    random = random_model(trained)
    assert (random.config, random.vocabulary) == (trained.config, trained.vocabulary)
    shapes = [jax.tree.map(np.shape, model.params) for model in (trained, random)]
    assert shapes[0] == shapes[1]
    kernels = [np.asarray(model.params["blocks"]["up"]["kernel"]) for model in (trained, random)]
    assert not np.allclose(*kernels)


@pytest.mark.slow
def test_scib_rewards_kinds_that_show_and_batches_that_do_not(cells):
    pytest.importorskip("scib_metrics", reason='pip install "geneformer_jax[quality]"')
    table = measure_quality(*cells, "kind", "donor")
    scib = [name for name in table.columns if name.startswith("scIB")]
    assert len(scib) == 8
    assert table[scib].notna().all(axis=None)
    assert table.loc["apart", "scIB: cLISI"] > table.loc["model", "scIB: cLISI"] + 0.3
    assert table.loc["apart", "scIB: NMI of Leiden"] > 0.9
    for name in ("scIB: iLISI", "scIB: kBET", "scIB: batch silhouette"):
        assert table.loc["apart", name] > table.loc["by donor", name] + 0.3
