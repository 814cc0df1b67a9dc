"""Edits of consecutive genes, which share the first block, beside the same edits without that."""

import jax
import numpy as np
import pytest

from geneformer_jax.cells.tokenization.vocabulary import V2_SPECIAL_TOKENS
from geneformer_jax.perturbation.config import PerturbationOptions
from geneformer_jax.perturbation.engine import perturber
from geneformer_jax.perturbation.engine.shifts import Shifts
from tests.helpers.perturb_runs import perturber_of
from tests.helpers.perturbation_reference import GivenCells
from tests.helpers.slow_perturbation import LIMIT, make_cells, make_model

# At the limit, beyond it in the models without and with special tokens, and down to a single gene.
RAGGED = [LIMIT, 20, 17, 9, 3, 2, 1, LIMIT - 2]


@pytest.fixture(scope="module")
def v1():
    return make_model()


@pytest.fixture(scope="module")
def v2():
    return make_model(V2_SPECIAL_TOKENS, classifier=True)


@pytest.fixture
def shared(monkeypatch) -> list[str]:
    """The `consecutive` of each batch that is made."""
    run, kinds = perturber.perturb_batch, []

    def listen(spec, *arguments):
        kinds.append(spec.consecutive)
        return run(spec, *arguments)

    monkeypatch.setattr(perturber, "perturb_batch", listen)
    return kinds


# 16 edits in few batches share a cell.
SIZES = {"min_batches": 1, "min_consecutive": 16}


def shifts_of(
    model, cells, devices: int = 1, tokens: int = 2 * LIMIT, sizes: dict = SIZES, **options
) -> Shifts:
    options = PerturbationOptions(**options)
    perturber = perturber_of(model, cells, options, devices, tokens_per_device=tokens, **sizes)
    with perturber.progress(perturber.plan.edits) as progress:
        return perturber.shifts(0, perturber.plan.edits, progress)


def assert_same(found: Shifts, expected: Shifts) -> None:
    for name, one, other in zip(found._fields, found, expected, strict=True):
        if name in ("values_EM", "gene_values"):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(one, other, err_msg=name)


def check(model, shared: list[str], **options) -> None:
    cells = make_cells(model, RAGGED)
    found = shifts_of(model, cells, **options)
    assert set(shared) == {options["edit"]}
    shared.clear()
    unshared = SIZES | {"min_consecutive": 0}
    assert_same(found, shifts_of(model, cells, sizes=unshared, **options))
    assert set(shared) == {""}
    assert np.isfinite(found.values_EM).all()


@pytest.mark.parametrize(
    ("devices", "tokens", "edit"),
    [
        (1, 2 * LIMIT, "delete"),
        (1, 5 * LIMIT, "overexpress"),
        (8, LIMIT, "delete"),
        pytest.param(1, 2 * LIMIT, "overexpress", marks=pytest.mark.slow),
        pytest.param(1, 5 * LIMIT, "delete", marks=pytest.mark.slow),
        pytest.param(8, LIMIT, "overexpress", marks=pytest.mark.slow),
    ],
)
def test_values_are_those_of_edits_by_themselves(v1, shared, edit, devices, tokens):
    """In groups of 2 of 16 rows, 5 of 20 and 1 of 16; eight devices have genes or only fillers."""
    given = {"devices": devices, "tokens": tokens, "gene_shifts": "full"}
    check(v1, shared, edit=edit, **given)


@pytest.mark.parametrize(
    ("devices", "edit"),
    [
        (1, "delete"),
        (8, "overexpress"),
        pytest.param(1, "overexpress", marks=pytest.mark.slow),
        pytest.param(8, "delete", marks=pytest.mark.slow),
    ],
)
def test_so_are_those_of_cells_with_special_tokens(v2, shared, edit, devices):
    tokens = LIMIT if devices > 1 else 2 * LIMIT
    given = {"edit": edit, "devices": devices, "tokens": tokens}
    check(v2, shared, mode="cls", **given)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "cls", "classes": True},
        pytest.param({"mode": "cls", "gene_shifts": "top", "top": 3}, marks=pytest.mark.slow),
        pytest.param({"mode": "cell", "hidden_layer": -2}, marks=pytest.mark.slow),
        {"mode": "cls", "hidden_layer": 0},
    ],
    ids=str,
)
def test_so_is_everything_that_is_measured(v2, shared, options):
    check(v2, shared, edit="overexpress", **options)


def test_fillers_are_neither_encoded_nor_counted(v1, shared):
    """Of 24 edits in steps of 16 rows, 8 rows are fillers: 4 groups of 2."""
    cells = make_cells(v1, [LIMIT])
    options = PerturbationOptions()
    perturber = perturber_of(v1, cells, options, tokens_per_device=2 * LIMIT, **SIZES)
    with perturber.progress(LIMIT) as progress:
        perturber.shifts(0, LIMIT, progress)
    assert shared == ["delete"] * 2
    assert perturber.throughput.padded == perturber.throughput.tokens == LIMIT * LIMIT


def test_so_are_those_of_halved_batches(v1, monkeypatch, shared):
    cells, sizes = make_cells(v1, RAGGED), []
    run = perturber.perturb_batch

    def small_device(spec, *arguments):
        sizes.append(spec.together)
        if spec.together > 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        return run(spec, *arguments)

    whole = shifts_of(v1, cells, tokens=5 * LIMIT)
    monkeypatch.setattr(perturber, "perturb_batch", small_device)
    assert_same(shifts_of(v1, cells, tokens=5 * LIMIT), whole)
    assert set(shared) == {"delete"}
    assert sizes[:2] == [5, 2] and set(sizes[2:]) == {2}


@pytest.mark.parametrize(
    "options", [{"mode": "cell", "hidden_layer": -3}, {"mode": "cls", "hidden_layer": -2}]
)
def test_a_block_that_is_not_run_on_all_tokens_is_not_shared(v2, shared, options):
    shifts_of(v2, make_cells(v2, [LIMIT - 2]), **options)
    assert set(shared) == {""}


@pytest.mark.parametrize(
    "options",
    [
        {"edit": "inhibit", "ranks": 2},
        {"edit": "activate", "ranks": 2},
        {"edit": "delete", "truncation": "refill"},
        {"edit": "overexpress", "truncation": "refill"},
        {"genes": ["ENSG00000000000"]},
        {"genes": ["ENSG00000000000"], "edit": "overexpress"},
        {"anchor": "ENSG00000000000"},
        {"combine": "pairs"},
    ],
    ids=str,
)
def test_other_edits_share_nothing(v1, shared, options):
    shifts_of(v1, make_cells(v1, [LIMIT, 9]), **options)
    assert set(shared) == {""}


def test_cells_with_few_edits_share_nothing(v1, shared):
    """Of these each device has several at a time."""
    shifts_of(v1, make_cells(v1, [9, 8, 7]), devices=8)
    assert set(shared) == {""}


def test_a_gene_that_a_cell_lists_twice_is_not_consecutive(v1, shared):
    cells = make_cells(v1, [LIMIT])
    tokens = cells.tokens[0].copy()
    tokens[10] = tokens[5]
    shifts_of(v1, GivenCells([tokens], cells.obs, cells.vocabulary))
    assert set(shared) == {""}
