"""Labelled batches: every cell with its own labels, whatever the order; balanced draws."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from geneformer_jax.batches.buckets import BatchShape
from geneformer_jax.batches.labelled import (
    UNLABELLED,
    LabelledBatches,
    LabelledCells,
    Learning,
    balanced_draw,
    balanced_weights,
    unlabelled,
)
from geneformer_jax.batches.loader import BatchShard, read_ahead

SHAPE = BatchShape((128, 256), (8, 4))


def epoch(store, labelled, per_gene, **options):
    learning = Learning(SHAPE, seed=3, **options)
    return list(read_ahead(LabelledBatches(store, labelled, learning, per_gene), 0, workers=0))


def test_every_cell_comes_once_with_its_own_labels(toy_store):
    rows = np.random.default_rng(0).permutation(240)[:100]
    labels = np.stack([rows % 7, rows / 10], axis=1).astype(np.float32)
    labels[rows % 5 == 0, 1] = np.nan
    seen = []
    for batch in epoch(toy_store, LabelledCells(rows, labels), per_gene=False):
        real = batch.cells_B >= 0
        cells = batch.cells_B[real]
        seen += cells.tolist()
        np.testing.assert_array_equal(batch.targets[real, 0], cells % 7)
        known = cells % 5 != 0
        np.testing.assert_array_equal(batch.weights[real], np.stack([known | True, known], 1))
        np.testing.assert_allclose(
            batch.targets[real, 1], np.where(known, cells / 10, 0), rtol=1e-6
        )
        assert not batch.weights[~real].any()
        for tokens, length, cell in zip(
            batch.tokens_BT, batch.lengths_B, batch.cells_B, strict=True
        ):
            if cell >= 0:
                np.testing.assert_array_equal(tokens[:length], toy_store.read([cell])[0])
    assert sorted(seen) == sorted(rows.tolist())


def test_labelled_genes_have_their_labels_wherever_they_stand(toy_store):
    labels = np.full(toy_store.vocabulary.size, UNLABELLED, np.int32)
    labels[10:60] = np.arange(50) % 3
    for batch in epoch(toy_store, LabelledCells(np.arange(60), labels), per_gene=True):
        real_BT = np.arange(batch.tokens_BT.shape[1]) < batch.lengths_B[:, None]
        known_BT = real_BT & (batch.tokens_BT >= 10) & (batch.tokens_BT < 60)
        np.testing.assert_array_equal(batch.weights[..., 0], known_BT)
        wanted = np.where(known_BT, (batch.tokens_BT - 10) % 3, 0)
        np.testing.assert_array_equal(batch.targets[..., 0], wanted)


def test_processes_read_parts_of_the_same_batches(toy_store):
    labelled = LabelledCells(np.arange(60), np.arange(60) % 2)
    whole = LabelledBatches(toy_store, labelled, Learning(SHAPE, seed=3), per_gene=False)
    parts = [
        LabelledBatches(toy_store, labelled, Learning(SHAPE, seed=3), False, 5, BatchShard(i, 2))
        for i in range(2)
    ]
    for step in range(5):
        joined = [
            np.concatenate(both) for both in zip(*(part[step] for part in parts), strict=True)
        ]
        for one, other in zip(joined, whole[step], strict=True):
            np.testing.assert_array_equal(one, other)


def test_workers_read_the_same_batches(toy_store):
    labelled = LabelledCells(np.arange(60), np.arange(60) % 2)
    batches = LabelledBatches(toy_store, labelled, Learning(SHAPE, seed=3), per_gene=False)
    pairs = zip(read_ahead(batches, 2, 0), read_ahead(batches, 2, 1), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one.cells_B, other.cells_B)
        np.testing.assert_array_equal(one.targets, other.targets)


def test_class_weights_are_scikit_learns_and_weigh_each_label(toy_store):
    classes = np.array([0, 0, 0, 2, 2, 1, 0, 0, 0, 0])
    weights = balanced_weights(classes, 3)
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=classes)
    np.testing.assert_allclose(weights, wanted, rtol=1e-6)
    np.testing.assert_allclose(balanced_weights(np.append(classes, UNLABELLED), 4)[3], 0)
    (batch, *_) = epoch(
        toy_store, LabelledCells(np.arange(10), classes), per_gene=False, class_weights=weights
    )
    real = batch.cells_B >= 0
    np.testing.assert_allclose(
        batch.weights[real, 0], wanted[classes[batch.cells_B[real]]], rtol=1e-6
    )


def test_a_balanced_draw_has_as_many_of_each_class_and_repeats_as_little_as_it_can():
    classes = np.repeat([0, 1, 2], [60, 20, 10])
    drawn = balanced_draw(classes, seed=1)
    assert np.bincount(classes[drawn]).tolist() == [30, 30, 30]
    times = np.bincount(drawn, minlength=90)
    assert times[:60].max() == 1
    assert set(times[60:80]) == {1, 2}
    assert set(times[80:]) == {3}
    assert not np.array_equal(drawn, balanced_draw(classes, seed=2))


def test_unlabelled_cells_have_no_targets(toy_store):
    (batch, *_) = epoch(toy_store, unlabelled(np.arange(9)), per_gene=False)
    assert batch.targets.shape[1] == 0


@pytest.mark.parametrize("balanced", [False, True])
def test_steps_beyond_an_epoch_shuffle_again(toy_store, balanced):
    labelled = LabelledCells(np.arange(40), np.arange(40) % 2)
    learning = Learning(SHAPE, seed=3, balanced=balanced)
    batches = LabelledBatches(toy_store, labelled, learning, per_gene=False, steps=50)
    n = batches.plan.steps_per_epoch
    first, second = (
        np.concatenate([batches[step].cells_B for step in range(k * n, (k + 1) * n)])
        for k in range(2)
    )
    assert sorted(first) == sorted(second)
    assert first.tolist() != second.tolist()
