"""The batch plan against slow, obvious versions and the promises in its docstrings."""

import numpy as np
import pytest

from geneformer_jax.batches.buckets import BatchShape, choose_buckets, shape_batches
from geneformer_jax.batches.plan import BatchPlan, PlanRecipe, split_cells
from geneformer_jax.common.errors import InputError
from tests.helpers.real_lengths import real_lengths, simulated_lengths


def some_lengths(cells: int = 3_000, longest: int = 2_048) -> np.ndarray:
    drawn = np.random.default_rng(0).lognormal(6.2, 0.7, cells)
    return np.clip(drawn, 7, longest).astype(np.int32)


def all_steps(plan: BatchPlan, epoch: int = 0) -> list:
    first = epoch * plan.steps_per_epoch
    return [plan.step(first + index) for index in range(plan.steps_per_epoch)]


@pytest.mark.parametrize("options", [{"cells_per_batch": 16}, {"tokens_per_batch": 8_192}])
@pytest.mark.parametrize("cells", [1, 5, 700, 3_000])
def test_every_cell_once_an_epoch_in_a_bucket_that_fits(options, cells):
    lengths = some_lengths(cells)
    plan = BatchPlan(lengths, shape_batches(choose_buckets(lengths), **options), seed=1)
    for epoch in (0, 3):
        seen = []
        for step in all_steps(plan, epoch):
            real = step.cells[step.cells >= 0]
            assert lengths[real].max() <= step.bucket
            rows = plan.shape.cells[plan.shape.buckets.index(step.bucket)]
            assert len(step.cells) == rows
            seen.extend(real)
        assert sorted(seen) == list(range(cells))


def test_devices_change_empty_rows_but_not_which_cells_meet():
    lengths = some_lengths()
    alone, shared = (
        BatchPlan(lengths, shape_batches((512, 2048), cells_per_batch=12, divisor=n), seed=0)
        for n in (1, 8)
    )
    for one, many in zip(all_steps(alone), all_steps(shared), strict=True):
        assert many.cells.tolist() == [*one.cells.tolist(), *[-1] * 4]
    assert shared.padding == pytest.approx(1 - (1 - alone.padding) * 12 / 16)


def test_few_cells_go_into_a_longer_bucket_than_they_need():
    lengths = some_lengths()
    plan = BatchPlan(lengths, shape_batches((512, 1024, 2048), cells_per_batch=32), seed=0)
    longer = 0
    for step in all_steps(plan):
        real = step.cells[step.cells >= 0]
        smaller = [bucket for bucket in plan.shape.buckets if bucket < step.bucket]
        longer += (lengths[real] <= max(smaller, default=0)).sum()
    assert longer < 2 * 32, "less than a batch of each bucket but the longest"


@pytest.mark.reference_data
def test_less_than_a_twentieth_of_real_cells_batches_is_padding(data_dir):
    lengths = real_lengths(data_dir)
    buckets = choose_buckets(lengths)
    for options in (
        {"cells_per_batch": 12},
        {"cells_per_batch": 144},
        {"tokens_per_batch": 16_384},
        {"tokens_per_batch": 65_536},
    ):
        plan = BatchPlan(lengths, shape_batches(buckets, **options), seed=0)
        assert plan.padding < 0.05, options


@pytest.mark.parametrize("longest", [2_048, 4_096])
def test_less_than_a_twentieth_of_a_corpus_batches_is_padding(longest):
    lengths = simulated_lengths(200_000, longest=longest)
    for options in ({"cells_per_batch": 144}, {"tokens_per_batch": 65_536}):
        plan = BatchPlan(lengths, shape_batches(choose_buckets(lengths), **options), seed=0)
        assert plan.padding < 0.05, options


def test_only_the_last_batch_of_a_bucket_has_filler_rows():
    lengths = some_lengths()
    plan = BatchPlan(lengths, shape_batches((512, 1024, 2048), cells_per_batch=32), seed=0)
    with_filler = [step.bucket for step in all_steps(plan) if (step.cells < 0).any()]
    assert len(with_filler) == len(set(with_filler)) <= 3


def test_padding_is_what_the_batches_hold():
    lengths = some_lengths()
    plan = BatchPlan(lengths, shape_batches((512, 1024, 2048), tokens_per_batch=16_384), seed=0)
    padded = sum(step.bucket * len(step.cells) for step in all_steps(plan))
    assert plan.padding == pytest.approx(1 - lengths.sum() / padded)


def test_a_plan_depends_on_its_arguments_alone_and_not_on_the_order_of_asking():
    lengths = some_lengths()
    shape = shape_batches(choose_buckets(lengths), cells_per_batch=16)
    forwards = BatchPlan(lengths, shape, seed=5)
    backwards = BatchPlan(lengths, shape, seed=5)
    steps = [0, 7, forwards.steps_per_epoch, 3 * forwards.steps_per_epoch + 2]
    expected = [forwards.step(step) for step in steps]
    for step, cells in zip(reversed(steps), reversed(expected), strict=True):
        np.testing.assert_array_equal(backwards.step(step).cells, cells.cells)
    other = BatchPlan(lengths, shape, seed=6)
    assert not np.array_equal(other.step(0).cells, expected[0].cells)
    assert not np.array_equal(expected[0].cells, expected[2].cells), "epochs must differ"


def test_mega_batches_run_from_long_to_short_cells():
    lengths = some_lengths(4_096)
    shape = shape_batches((256, 512, 1024, 2048), cells_per_batch=8)
    plan = BatchPlan(lengths, shape, seed=0, mega_batch_multiplier=64)
    buckets = np.array([step.bucket for step in all_steps(plan)])
    # Lengths can only rise where a mega-batch ends: 4,096 cells in mega-batches of about 64 x 8.
    rises = int((np.diff(buckets) > 0).sum())
    assert 4 <= rises <= 4_096 // (64 * 7) + 4
    # The tail of batches that never filled comes last, again from long to short.
    assert buckets[0] == 2048


def test_held_out_cells_are_kept_apart_and_drawn_by_seed():
    training, held_out = split_cells(1_000, 100, seed=3)
    assert len(held_out) == 100
    assert sorted([*training, *held_out]) == list(range(1_000))
    assert np.array_equal(held_out, split_cells(1_000, 100, seed=3)[1])
    assert not np.array_equal(held_out, split_cells(1_000, 100, seed=4)[1])
    assert held_out.max() > 900 > 100 > held_out.min(), "not simply the first or last cells"


def test_a_recipe_plans_training_or_held_out_cells():
    lengths = some_lengths(500)
    shape = shape_batches(choose_buckets(lengths), cells_per_batch=8)
    recipe = PlanRecipe(shape, seed=0, held_out_cells=50)
    training = recipe.make(lengths)
    held_out = PlanRecipe(shape, seed=0, held_out_cells=50, held_out=True).make(lengths)
    seen = [
        {cell for step in all_steps(plan) for cell in step.cells if cell >= 0}
        for plan in (training, held_out)
    ]
    assert [len(cells) for cells in seen] == [450, 50]
    assert not seen[0] & seen[1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: split_cells(10, 10, 0), "held_out_cells` is 10"),
        (lambda: BatchPlan(np.array([300]), BatchShape((128,), (4,)), seed=0), "300 tokens"),
        (lambda: BatchPlan(np.array([], int), BatchShape((128,), (4,)), seed=0), "no cell"),
    ],
)
def test_what_cannot_be_planned_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
