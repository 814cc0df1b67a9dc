"""Batches: the same for any number of hosts and workers, from any step on."""

import functools
import itertools
import multiprocessing
import os
import pickle
import signal

import jax
import numpy as np
import pytest

from geneformer_jax.batches.buckets import BatchShape, choose_buckets, shape_batches
from geneformer_jax.batches.config import MaskingConfig
from geneformer_jax.batches.loader import BatchShard, MaskedBatches, read_ahead
from geneformer_jax.batches.masking import mask_cells
from geneformer_jax.batches.plan import PlanRecipe


@pytest.fixture(scope="module", params=["padded", "packed"])
def batches(request, toy_store):
    buckets = choose_buckets(toy_store.lengths, 3)
    packing = request.param == "packed"
    shape = BatchShape(buckets[-1:], (8,)) if packing else shape_batches(buckets, cells_per_batch=8)
    recipe = PlanRecipe(shape, seed=3, packing=packing)
    return functools.partial(batches_of, toy_store, recipe)


def batches_of(store, recipe: PlanRecipe, shard: BatchShard = BatchShard()) -> MaskedBatches:  # noqa: B008
    return MaskedBatches(store, recipe, MaskingConfig(), 100, shard)


def equal(one, other) -> bool:
    same = jax.tree.map(np.array_equal, one, other)
    return all(jax.tree.leaves(same))


def test_a_batch_holds_its_cells_masked(toy_store):
    shape = shape_batches(choose_buckets(toy_store.lengths, 3), cells_per_batch=8)
    source = batches_of(toy_store, PlanRecipe(shape, seed=3))
    for step in (0, 40):
        cells, bucket = source.plan.step(step)
        batch = source[step]
        assert batch.tokens_BT.shape == (8, bucket)
        np.testing.assert_array_equal(batch.cells_B, cells)
        real = [cell for cell in cells if cell >= 0]
        plain = np.zeros((8, bucket), np.int32)
        for row, tokens in enumerate(toy_store.read(real)):
            plain[row, : len(tokens)] = tokens
        lengths = np.array([*toy_store.lengths[real], *[0] * (8 - len(real))])
        np.testing.assert_array_equal(batch.lengths_B, lengths)
        expected = mask_cells(
            plain,
            lengths,
            np.maximum(cells, 0),
            seed=3,
            step=step,
            config=MaskingConfig(),
            vocabulary=toy_store.vocabulary,
        )
        assert equal(tuple(expected), (batch.tokens_BT, *batch[2:5]))


def test_a_packed_batch_holds_its_cells_one_after_another(toy_store):
    shape = BatchShape(choose_buckets(toy_store.lengths, 1), (8,))
    recipe = PlanRecipe(shape, seed=3, packing=True)
    source = MaskedBatches(toy_store, recipe, None, 100)
    last = source.plan.steps_per_epoch - 1
    for step in (0, last):
        cells_BC, row = source.plan.step(step)
        batch = source[step]
        assert batch.targets_BM is None, "no rule: left to the device"
        assert batch.tokens_BT.shape == (8, row)
        np.testing.assert_array_equal(batch.cells_B, cells_BC)
        for cells, tokens, length, segments, ranks in zip(
            cells_BC, batch.tokens_BT, batch.lengths_B, *batch.packing, strict=True
        ):
            expected = toy_store.read(cells[cells >= 0])
            assert length == sum(map(len, expected))
            for number, own in enumerate(expected, start=1):
                np.testing.assert_array_equal(tokens[segments == number], own)
                np.testing.assert_array_equal(ranks[segments == number], np.arange(len(own)))
            assert (segments == 0).sum() == row - length
    assert (source[last].lengths_B == 0).any(), "filler rows in the last batch of an epoch"


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_parts_of_the_same_global_batch(batches, hosts):
    whole = batches()
    parts = [batches(BatchShard(index, hosts)) for index in range(hosts)]
    for step in range(0, 60, 7):
        together = jax.tree.map(lambda *rows: np.concatenate(rows), *(p[step] for p in parts))
        assert equal(whole[step], together)


@pytest.mark.parametrize(
    ("batches", "workers"),
    [
        ("padded", 0),
        ("packed", 0),
        pytest.param("padded", 1, marks=pytest.mark.multiprocess),
        pytest.param("packed", 1, marks=pytest.mark.multiprocess),
        pytest.param("padded", 2, marks=[pytest.mark.multiprocess, pytest.mark.slow]),
        pytest.param("packed", 2, marks=pytest.mark.multiprocess),
    ],
    indirect=["batches"],
)
def test_reading_ahead_changes_nothing_and_begins_at_any_step(batches, workers):
    source, others = batches(), set(multiprocessing.active_children())
    read = read_ahead(source, 17, workers)
    for step, batch in zip(range(17, 23), itertools.islice(read, 6), strict=True):
        assert equal(batch, source[step])
        # A terminal sends Ctrl-C to them too, but it is for the process that reads.
        for worker in set(multiprocessing.active_children()) - others:
            os.kill(worker.pid, signal.SIGINT)
    read.close()
    assert set(multiprocessing.active_children()) <= others


def test_a_worker_is_sent_no_tokens(batches):
    source = batches()
    _ = source.plan
    assert len(pickle.dumps(source)) < 2_000
    assert equal(pickle.loads(pickle.dumps(source))[5], source[5])
