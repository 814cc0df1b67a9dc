"""Batches: the same for any number of hosts and workers, from any step on."""

import itertools
import pickle

import numpy as np
import pytest

from geneformer_jax.batches.loader import MaskedBatches, Share, read_ahead
from geneformer_jax.batches.masking import MaskingRule, mask_cells
from geneformer_jax.batches.plan import PlanRecipe, choose_buckets, shape_batches


@pytest.fixture(scope="module")
def batches(toy_store):
    def make(share: Share = Share(), store=toy_store) -> MaskedBatches:  # noqa: B008
        shape = shape_batches(choose_buckets(store.lengths, 3), cells_per_batch=8)
        rule = MaskingRule(store.vocabulary.size, store.vocabulary.first_gene_token)
        return MaskedBatches(store, PlanRecipe(shape, seed=3), rule, 100, share)

    return make


def equal(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_batch_holds_its_cells_masked(batches, toy_store):
    source = batches()
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
        rule = MaskingRule(toy_store.vocabulary.size, 2)
        expected = mask_cells(plain, lengths, np.maximum(cells, 0), seed=3, step=step, rule=rule)
        assert equal(expected, (batch.tokens_BT, *batch[2:5]))


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_parts_of_the_same_global_batch(batches, hosts):
    whole = batches()
    parts = [batches(Share(index, hosts)) for index in range(hosts)]
    for step in range(0, 60, 7):
        together = [np.concatenate(rows) for rows in zip(*(p[step] for p in parts), strict=True)]
        assert equal(whole[step], together)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.multiprocess)])
def test_reading_ahead_changes_nothing_and_begins_at_any_step(batches, workers):
    source = batches()
    read = read_ahead(source, 17, workers)
    for step, batch in zip(range(17, 23), itertools.islice(read, 6), strict=True):
        assert equal(batch, source[step])
    read.close()


def test_a_worker_is_sent_no_tokens(batches):
    source = batches()
    _ = source.plan
    assert len(pickle.dumps(source)) < 2_000
    assert equal(pickle.loads(pickle.dumps(source))[5], source[5])
