"""Buckets against slow, obvious versions, and the rows in a batch of each."""

import itertools

import numpy as np
import pytest

from geneformer_jax.batches.buckets import (
    BatchShape,
    batch_shape,
    cells_to_move,
    choose_buckets,
    shape_batches,
)
from geneformer_jax.batches.config import DataConfig
from geneformer_jax.common.errors import InputError


def test_moving_cells_to_longer_buckets_pads_the_least_there_is():
    rng = np.random.default_rng(0)
    for _ in range(50):
        shape = BatchShape((64, 128, 256, 512), tuple(rng.integers(1, 9, 4).tolist()))
        counts = rng.integers(0, 20, 4)

        def padded(moved, shape=shape, counts=counts) -> int:
            held = counts + np.array([0, *moved[:-1]]) - np.array(moved)
            batches = -(-held // np.array(shape.cells))
            return int((batches * shape.cells * shape.buckets).sum())

        def ways(bucket, below, shape=shape, counts=counts):
            """Every choice of keeping or moving what does not fill a batch."""
            if bucket == 3:
                yield [0]
                return
            left = int(counts[bucket] + below) % shape.cells[bucket]
            for moved in {0, left}:
                yield from ([moved, *rest] for rest in ways(bucket + 1, moved))

        assert padded(cells_to_move(counts, shape)) == min(map(padded, ways(0, 0)))


def test_buckets_waste_the_least_padding_there_is():
    lengths = np.random.default_rng(3).integers(7, 500, 200)
    grid = [64, 128, 192, 256, 320, 384, 448, 512]

    def padded(buckets: tuple[int, ...]) -> int:
        return int(np.asarray(buckets)[np.searchsorted(buckets, lengths)].sum())

    choices = [(*chosen, 512) for k in range(3) for chosen in itertools.combinations(grid[:-1], k)]
    assert padded(choose_buckets(lengths, max_buckets=3)) == min(map(padded, choices))


def test_buckets_stay_on_the_grid_and_reach_the_longest_cell():
    for longest in (7, 64, 65, 512, 513, 2_048, 4_096):
        buckets = choose_buckets(np.array([7, longest]), max_buckets=4)
        assert buckets[-1] - 64 < longest <= buckets[-1]
        assert all(bucket % 64 == 0 for bucket in buckets)
        coarse = choose_buckets(np.array([7, longest]), max_buckets=4, multiple=128)
        assert all(bucket % 128 == 0 for bucket in coarse)
        assert coarse[-1] >= longest


def test_a_fixed_token_budget_gives_steps_of_about_equal_cost():
    shape = shape_batches((128, 640, 2048), tokens_per_batch=32_768, divisor=4)
    assert shape == BatchShape((128, 640, 2048), (256, 48, 16))


def test_cells_given_stay_as_many_on_any_devices():
    shape = shape_batches((64, 128), cells_per_batch=12, divisor=8)
    assert (shape.cells, shape.rows) == ((12, 12), (16, 16))
    assert shape.describe() == (
        "12 x 64, 12 x 128; 4 empty rows in each, as rows must be a multiple of 8"
    )
    assert shape_batches((64,), cells_per_batch=12, divisor=4).describe() == "12 x 64"


def test_a_configuration_gives_buckets_within_the_models_positions():
    lengths = np.array([7, 60, 70, 130, 180])
    data = DataConfig(tokens_per_batch=800, max_buckets=2)
    assert batch_shape(data, lengths, 180, 2) == BatchShape((64, 180), (12, 4))
    packed = DataConfig(tokens_per_batch=800, packing=True)
    assert batch_shape(packed, lengths, 256, 2) == BatchShape((192,), (4,))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: shape_batches((128,)), "exactly one"),
        (lambda: shape_batches((128,), tokens_per_batch=1, cells_per_batch=1), "exactly one"),
        (lambda: shape_batches((128, 2048), tokens_per_batch=2_000), "at least 2048"),
    ],
)
def test_batches_that_cannot_be_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
