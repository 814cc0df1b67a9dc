"""Packed plans: every cell once, little left empty, the same for everyone who asks."""

import itertools

import numpy as np
import pytest

from geneformer_jax.batches.buckets import BatchShape
from geneformer_jax.batches.loader import pack_cells
from geneformer_jax.batches.packing import pack_lengths
from geneformer_jax.batches.plan import PackedPlan, PlanRecipe
from geneformer_jax.common.errors import InputError
from tests.helpers.real_lengths import real_lengths, simulated_lengths

SHAPE = BatchShape((2_048,), (16,))


def slow_best_fit(lengths: list[int], row: int) -> list[tuple[int, ...]]:
    """One cell after the other, the longest first, each into the fullest row that holds it."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [each for each in rows if sum(each) + length <= row]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return sorted(tuple(each) for each in rows)


@pytest.mark.parametrize("seed", range(4))
def test_packing_counts_of_lengths_leaves_no_more_empty_than_packing_cells(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 65, rng.integers(1, 400))
    kinds = pack_lengths(np.bincount(lengths), 64)
    packed = [kind.lengths for kind in kinds for _ in range(kind.rows)]
    assert sorted(itertools.chain(*packed)) == sorted(lengths.tolist())
    assert max(map(sum, packed)) <= 64
    # Which of equally full rows takes a cell is free, hence one row more or less.
    assert abs(len(packed) - len(slow_best_fit(lengths.tolist(), 64))) <= 1


@pytest.mark.parametrize("cells", [1, 40, 3_000])
def test_every_cell_once_an_epoch_and_rows_hold_their_cells(cells):
    lengths = simulated_lengths(cells)
    plan = PackedPlan(lengths, SHAPE, seed=1)
    shapes = set()
    for epoch in (0, 2):
        steps = [plan.step(epoch * plan.steps_per_epoch + i) for i in range(plan.steps_per_epoch)]
        seen = np.concatenate([step.cells[step.cells >= 0] for step in steps])
        assert sorted(seen) == list(range(cells))
        for step in steps:
            shapes.add(step.cells.shape)
            tokens = np.where(step.cells >= 0, lengths[step.cells], 0)
            assert tokens.sum(axis=1).max() <= step.bucket == 2_048
            later_is_real = (step.cells[:, 1:] >= 0) & (step.cells[:, :-1] < 0)
            assert not later_is_real.any(), "a row's cells come first"
    assert len(shapes) == 1, "one shape, one program"


def test_a_packed_plan_depends_on_its_arguments_alone_and_not_on_the_order_of_asking():
    lengths = simulated_lengths(2_000)
    forwards, backwards = (PackedPlan(lengths, SHAPE, seed=5) for _ in range(2))
    steps = [0, 7, forwards.steps_per_epoch, 3 * forwards.steps_per_epoch + 2]
    expected = [forwards.step(step).cells for step in steps]
    for step, cells in zip(reversed(steps), reversed(expected), strict=True):
        np.testing.assert_array_equal(backwards.step(step).cells, cells)
    assert not np.array_equal(PackedPlan(lengths, SHAPE, seed=6).step(0).cells, expected[0])
    assert not np.array_equal(expected[0], expected[2]), "epochs must differ"


def test_cells_meet_others_in_every_epoch():
    lengths = simulated_lengths(20_000)
    plan = PackedPlan(lengths, SHAPE, seed=0)

    def neighbours(epoch: int) -> set[frozenset[int]]:
        rows = [
            row for i in range(plan.steps_per_epoch)
            for row in plan.step(epoch * plan.steps_per_epoch + i).cells
        ]  # fmt: skip
        return {frozenset(row[row >= 0].tolist()) for row in rows if (row >= 0).sum() > 1}

    first, second = neighbours(0), neighbours(1)
    assert len(first & second) < 0.1 * len(first)


def test_packing_fills_rows_of_a_simulated_corpus():
    for longest in (2_048, 4_096):
        lengths = simulated_lengths(200_000, longest=longest)
        plan = PackedPlan(lengths, BatchShape((longest,), (32,)), seed=0)
        filled = sum(lengths[cells[cells >= 0]].sum() for cells, _ in map(plan.step, range(50)))
        assert 1 - plan.padding > 0.97
        assert filled / (50 * 32 * longest) == pytest.approx(1 - plan.padding, abs=0.01)


@pytest.mark.reference_data
def test_packing_fills_rows_of_real_cells(data_dir):
    lengths = real_lengths(data_dir)
    for rows in (8, 16, 32):
        plan = PackedPlan(lengths, BatchShape((2_048,), (rows,)), seed=0)
        assert 1 - plan.padding >= 0.94


def test_a_recipe_packs_training_cells_only():
    lengths = simulated_lengths(300)
    recipe = PlanRecipe(SHAPE, seed=0, held_out_cells=40, packing=True)
    plan = recipe.make(lengths)
    assert plan.n_cells == 260
    held_out = PlanRecipe(SHAPE, seed=0, held_out_cells=40, held_out=True, packing=True)
    cells = [
        {cell for i in range(p.steps_per_epoch) for cell in p.step(i).cells.ravel() if cell >= 0}
        for p in (plan, held_out.make(lengths))
    ]
    assert not cells[0] & cells[1]
    assert cells[0] | cells[1] == set(range(300))


def test_cells_are_laid_one_after_another():
    cells = [np.array(each, np.uint16) for each in ([5, 6], [7], [8, 9, 10])]
    tokens_BT, lengths_B, packing = pack_cells(cells, np.array([0, 0, 2]), (3, 4), pad_token=1)
    np.testing.assert_array_equal(tokens_BT, [[5, 6, 7, 1], [1, 1, 1, 1], [8, 9, 10, 1]])
    np.testing.assert_array_equal(lengths_B, [3, 0, 3])
    segments_BT = [[1, 1, 2, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    np.testing.assert_array_equal(packing.segments_BT, segments_BT)
    np.testing.assert_array_equal(packing.ranks_BT, [[0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 2, 0]])


def test_rows_shorter_than_a_cell_are_refused():
    with pytest.raises(InputError, match="300 tokens"):
        PackedPlan(np.array([300]), BatchShape((128,), (4,)), seed=0)
