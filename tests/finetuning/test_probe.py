"""A head that begins as a probe: it says what logistic regression on pooled embeddings does."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from geneformer_jax.batches.loader import pad_cells
from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning import loop
from geneformer_jax.finetuning.loop import FoldRun
from geneformer_jax.finetuning.network.evaluation import compute_outputs
from geneformer_jax.finetuning.network.probe import probe_head
from geneformer_jax.finetuning.prepare import prepare_finetuning
from geneformer_jax.model.encoder import encode
from geneformer_jax.model.heads import HeadTask
from geneformer_jax.model.pretrained import load_model
from tests.helpers.labelled_tasks import ToyTask, config_of, save_base

rng = np.random.default_rng(0)


def drawn(width, classes):
    return {
        "pooler": {"kernel": rng.normal(size=(width, width)), "bias": np.zeros(width)},
        "classifier": {"kernel": rng.normal(size=(width, classes)), "bias": np.zeros(classes)},
    }


def logits_of(head, pooled_ND):
    hidden = np.tanh(pooled_ND @ head["pooler"]["kernel"] + head["pooler"]["bias"])
    return hidden @ head["classifier"]["kernel"] + head["classifier"]["bias"]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("cells", [9, 400])
def test_it_tells_classes_as_regression_on_whitened_components_does(classes, cells):
    means_CD = rng.normal(size=(classes, 12))
    labels_N = np.arange(cells) % classes
    pooled_ND = 5 + means_CD[labels_N] + 0.7 * rng.normal(size=(cells, 12))
    head = probe_head(drawn(12, classes), pooled_ND.astype(np.float32), labels_N)
    centred = pooled_ND - pooled_ND.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / cells)
    white_NK = centred @ vectors[:, values > 1e-9] / np.sqrt(values[values > 1e-9])
    expected = LogisticRegression(C=0.01, max_iter=500).fit(white_NK, labels_N)
    told = logits_of(head, pooled_ND)
    probabilities = np.exp(told) / np.exp(told).sum(axis=1, keepdims=True)
    # The tanh of numbers of 0.3 is not quite them.
    np.testing.assert_allclose(probabilities, expected.predict_proba(white_NK), atol=0.06)
    assert (told.argmax(axis=1) == expected.predict(white_NK)).mean() > 0.97


def test_a_class_without_cells_is_unlikely_and_a_rare_one_counts_when_balanced():
    labels_N = np.where(np.arange(300) < 20, 2, 0)
    pooled_ND = rng.normal(size=(300, 6)) + (labels_N == 2)[:, None]
    plain = logits_of(probe_head(drawn(6, 3), pooled_ND, labels_N), pooled_ND)
    weighted = probe_head(drawn(6, 3), pooled_ND, labels_N, balanced=True)
    weighted = logits_of(weighted, pooled_ND)
    assert (plain[:, 1] < plain[:, [0, 2]].max(axis=1) - 5).all()
    assert (weighted.argmax(axis=1) == 2).sum() > (plain.argmax(axis=1) == 2).sum()
    with pytest.raises(InputError, match="all 300 training cells are of one class"):
        probe_head(drawn(6, 3), pooled_ND, np.zeros(300, int))
    with pytest.raises(InputError, match="pooled of all 300 training cells is the same"):
        probe_head(drawn(6, 3), np.ones((300, 6)), labels_N)


@pytest.mark.parametrize("pooling", ["mean", pytest.param("first", marks=pytest.mark.slow)])
def test_a_fold_begins_with_what_its_own_training_cells_tell(toy_store, tmp_path, pooling):
    model = load_model(save_base(tmp_path / "base"))
    task = ToyTask("cell", toy_store)
    config = config_of(**{"head.initial": "probe", "head.pooling": pooling})
    setup = prepare_finetuning(task, model, config)
    data = task.fold_data(0)
    begun = loop._initial(FoldRun(setup, data, 0, tmp_path / "fold"))
    batches = setup.batches(data.test)
    found = compute_outputs(setup.compiled, begun, setup.frozen, batches, 0)
    rows = np.concatenate([data.train.rows, found.cells])
    cells = toy_store.read(rows)
    lengths_B = np.array([len(cell) for cell in cells])
    tokens_BT = pad_cells(cells, int(lengths_B.max()), 0)
    hidden = np.asarray(encode(model.config, model.params, tokens_BT, lengths_B))
    kept = 1 if pooling == "first" else None
    pooled_ND = np.stack(
        [each[:n][:kept].mean(axis=0) for each, n in zip(hidden, lengths_B, strict=True)]
    )
    kind = setup.head.kind
    train_ND, test_ND = np.split(pooled_ND, [len(data.train.rows)])
    expected = probe_head(setup.trainable[kind], train_ND, data.train.labels)
    np.testing.assert_allclose(found.logits, logits_of(expected, test_ND), atol=2e-3)
    assert "initial_head" in FoldRun(setup, data, 0, tmp_path / "fold").identity()


@pytest.mark.parametrize(
    ("unit", "options", "reason"),
    [
        ("gene", {}, "genes are labelled"),
        ("cell", {"head.pooling": "attention"}, "nothing may be learned between"),
        ("cell", {"head.extra_layer": True}, "nothing may be learned between"),
    ],
)
def test_a_probe_that_is_none_is_refused(toy_store, unit, options, reason):
    config = config_of(**{"head.initial": "probe"} | options)
    with pytest.raises(InputError, match=f"`config.head.initial` is probe, but {reason}"):
        prepare_finetuning(ToyTask(unit, toy_store), None, config)


def test_a_probe_of_several_tasks_is_refused(toy_store):
    task = dataclasses.replace(
        ToyTask("cell", toy_store), outputs=(HeadTask("age", ("age",), regression=True),)
    )
    with pytest.raises(InputError, match="it is for a single classification"):
        prepare_finetuning(task, None, config_of(**{"head.initial": "probe"}))
