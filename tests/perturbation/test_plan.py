"""The plan of edits: how often cells are read, and their edits computed."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from geneformer_jax.perturbation.config import PerturbationOptions
from geneformer_jax.perturbation.engine import plan as plan_module
from tests.helpers.perturb_runs import perturber_of
from tests.helpers.perturbation_reference import GivenCells
from tests.helpers.slow_perturbation import LIMIT, make_cells, make_model


class CountingCells(GivenCells):
    """Counts how often each cell is read."""

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        self.reads.update(np.asarray(indices).tolist())
        return super().read(indices)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def computed(monkeypatch) -> Counter:
    """How often the edits of each cell are computed, by its genes."""
    compute, calls = plan_module.edits_of, Counter()

    def counting(rule, special, genes, *arguments):
        calls[genes.tobytes()] += 1
        return compute(rule, special, genes, *arguments)

    monkeypatch.setattr(plan_module, "edits_of", counting)
    return calls


@pytest.mark.parametrize("edit", ["delete", "overexpress"])
def test_a_part_reads_each_cell_once_and_its_edits_are_computed_at_most_twice(
    model, computed, edit
):
    given = make_cells(model, [LIMIT, 20, 17, 9, 5])
    cells = CountingCells(given.tokens, given.obs, given.vocabulary)
    object.__setattr__(cells, "reads", Counter())
    options = PerturbationOptions(edit=edit, gene_shifts="full")
    perturber = perturber_of(model, cells, options, tokens_per_device=64, tokens_per_part=400)
    assert set(cells.reads.values()) == {1} and set(computed.values()) == {1}
    plan = perturber.plan
    split = Counter()
    with perturber.progress(plan.edits) as progress:
        for start, stop in plan.parts:
            cells.reads.clear()
            shifts = perturber.shifts(start, stop, progress)
            in_part = set(shifts.cells.tolist())
            assert cells.reads == Counter(in_part)
            split.update(in_part)
    assert len(plan.parts) > 1 and max(split.values()) == 2
    # Once for the plan, and once for each part that has edits of the cell.
    expected = {given.tokens[cell].astype(np.int32).tobytes(): n + 1 for cell, n in split.items()}
    assert computed == expected


def part_sizes(plan) -> list[int]:
    """Tokens of each part, added up edit by edit."""
    assert [start for start, _ in plan.parts] == [0, *(stop for _, stop in plan.parts[:-1])]
    assert plan.parts[-1][1] == plan.edits
    tokens = plan.longest[plan.cell_of(np.arange(plan.edits))]
    return [int(tokens[start:stop].sum()) for start, stop in plan.parts]


def test_parts_cover_all_edits_in_about_the_asked_size(model):
    cells, options = make_cells(model, [LIMIT, 20, 17, 9, 5]), PerturbationOptions()
    sizes = part_sizes(perturber_of(model, cells, options, tokens_per_part=200).plan)
    assert len(sizes) > 4
    assert all(200 - LIMIT < size <= 200 for size in sizes[:-1]) and sizes[-1] <= 200


def test_few_edits_are_in_parts_that_can_be_shared_and_many_are_not_cut_up(model, monkeypatch):
    cells, options = make_cells(model, [LIMIT, 20, 17, 9, 5]), PerturbationOptions()
    plan = perturber_of(model, cells, options).plan
    sizes = part_sizes(plan)
    assert len(sizes) == 5 and max(sizes) <= plan.tokens // 4 + 1
    monkeypatch.setattr(plan_module, "_TOKENS_TO_SHARE", 100)
    sizes = part_sizes(replace(plan))
    assert all(100 - LIMIT < size <= 100 for size in sizes[:-1])
    monkeypatch.setattr(plan_module, "_PARTS_TO_SHARE", 5)
    assert max(part_sizes(replace(plan))) > 200


def test_costs_of_parts_are_those_of_their_encodings(model):
    cells, options = make_cells(model, [LIMIT, 20, 17, 9, 5]), PerturbationOptions()
    plan = perturber_of(model, cells, options, tokens_per_part=200).plan
    lengths = plan.longest[plan.cell_of(np.arange(plan.edits))].astype(float)
    D, F, layers = model.config.width, model.config.feed_forward, model.config.layers
    flops = layers * (lengths * (8 * D * D + 4 * D * F) + 4 * lengths**2 * D)
    expected = [flops[start:stop].sum() for start, stop in plan.parts]
    np.testing.assert_allclose(plan.part_costs(model.config), expected, rtol=1e-12)
    in_whole_cells = plan.in_whole_cells(np.full(5, 3.0))
    of_cell = 3 * flops[plan.offsets[:-1]]
    first, stop = np.array(in_whole_cells.parts).T
    expected = [of_cell[(plan.offsets[:-1] >= a) & (plan.offsets[:-1] < b)].sum()
                for a, b in zip(first, stop, strict=True)]  # fmt: skip
    np.testing.assert_allclose(in_whole_cells.part_costs(model.config), expected, rtol=1e-12)
