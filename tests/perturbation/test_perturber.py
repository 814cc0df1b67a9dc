"""What the engine measures, beside cells edited in plain Python and encoded one at a time."""

from dataclasses import replace

import jax
import numpy as np
import pandas as pd
import pytest

from geneformer_jax.cells.tokenization.vocabulary import V2_SPECIAL_TOKENS
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.encoder import encode
from geneformer_jax.model.heads import HeadTask, head_of_tasks
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.perturbation.api import perturb_cells
from geneformer_jax.perturbation.cell_states import CellStates
from geneformer_jax.perturbation.config import PerturbationOptions
from geneformer_jax.perturbation.engine import forward, perturber
from geneformer_jax.perturbation.engine.edits import EditRule
from tests.helpers.perturb_runs import perturber_of
from tests.helpers.perturbation_reference import GivenCells
from tests.helpers.slow_perturbation import (
    LIMIT,
    by_hand,
    cosine,
    encoded,
    ids_of,
    make_cells,
    make_model,
    value_of,
)

ATOL = 3e-6


@pytest.fixture(scope="module")
def v1() -> PretrainedModel:
    return make_model()


@pytest.fixture(scope="module")
def v2() -> PretrainedModel:
    return make_model(V2_SPECIAL_TOKENS, classifier=True)


EDITS = [
    {"edit": "delete"},
    {"edit": "overexpress"},
    {"edit": "inhibit", "ranks": 5},
    {"edit": "activate", "quantile": 0.4},
    {"edit": "delete", "truncation": "refill"},
    {"edit": "activate", "ranks": 7, "truncation": "refill"},
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: "-".join(map(str, e.values())))
def test_every_gene_in_turn_is_as_one_edit_at_a_time(v1, edit):
    refill = edit.get("truncation") == "refill"
    cells = make_cells(v1, [7, 20, 24, 30] if refill else [7, 20, 24])
    found = perturb_cells(v1, cells, **edit)
    rule = EditRule(edit["edit"], edit.get("ranks"), edit.get("quantile"), refill)
    rng = np.random.default_rng(0)
    for cell, tokens in zip(cells.obs.index, cells.tokens, strict=True):
        genes = tokens.astype(int).tolist()
        seen = genes if refill and rule.raises_genes else genes[:LIMIT]
        skipped = {"delete": [], "inhibit": seen[-1:]}.get(edit["edit"], seen[:1])
        perturbed = [gene for gene in seen if gene not in skipped]
        own = found[found["cell"] == cell]
        assert set(own["perturbed"]) == {ids_of(v1, [gene]) for gene in perturbed}
        for gene in rng.permutation(perturbed)[:4]:
            expected = by_hand(v1, rule, genes, [gene])
            for measure in ("mean_gene_cosine", "cell_cosine"):
                value = value_of(found, cell, ids_of(v1, [gene]), measure)
                assert value == pytest.approx(expected[measure], abs=ATOL)


def test_sets_that_reach_the_limit_are_compared_with_a_cell_cut_alike(v2):
    """0, 1 or 2 genes are cut off the original, as many as do not fit into the edited cell."""
    cells = make_cells(v2, [10, 20, 21, 22])
    absent = [v2.vocabulary.first_gene_token + 1, v2.vocabulary.first_gene_token + 3]
    named = [v2.vocabulary.gene_id_of(token) for token in absent]
    options = {"edit": "overexpress", "genes": named, "combine": "together", "classes": True}
    found = perturb_cells(v2, cells, **options)
    every = perturb_cells(v2, cells, **options | {"classes": False}, gene_shifts="full")
    for cell, tokens in zip(cells.obs.index, cells.tokens, strict=True):
        expected = by_hand(v2, EditRule("overexpress"), tokens[1:-1].astype(int), absent)
        value = value_of(found, cell, "+".join(named), "cls_cosine")
        assert value == pytest.approx(expected["cls_cosine"], abs=ATOL)
        for when, classes in zip(("before", "after"), expected["classes"], strict=True):
            for label, probability in zip(v2.head.labels, classes, strict=True):
                value = value_of(found, cell, "+".join(named), f"class_probability_{when}", label)
                assert value == pytest.approx(probability, abs=ATOL)
        own = every[every["cell"] == cell].set_index("affected")["value"]
        genes = {ids_of(v2, [token]): value for token, value in expected["genes"].items()}
        assert set(own.index) == set(genes)
        np.testing.assert_allclose(own[list(genes)], list(genes.values()), atol=ATOL)


def test_a_classifier_that_pools_a_cell_sees_no_padding(v2):
    model = replace(v2, head=replace(v2.head, pooling="mean"))
    cells = make_cells(model, [9])
    genes = cells.tokens[0][1:-1].astype(int)
    expected = by_hand(model, EditRule("delete"), genes, [genes[2]])["classes"]
    named = ids_of(model, [genes[2]])
    found = perturb_cells(model, cells, genes=[named], classes=True)
    for when, classes in zip(("before", "after"), expected, strict=True):
        for label, probability in zip(model.head.labels, classes, strict=True):
            value = value_of(found, "cell0", named, f"class_probability_{when}", label)
            assert value == pytest.approx(probability, abs=ATOL)


def test_a_network_of_several_tasks_has_no_class_probabilities(v2):
    tasks = HeadTask("type", ("a", "b")), HeadTask("age", ("age",), regression=True)
    model = replace(v2, head=head_of_tasks("cell_classifier", tasks, 0.0))
    with pytest.raises(InputError, match=r"several tasks or a regression \(type, age\)"):
        perturb_cells(model, make_cells(model, [9]), classes=True)


@pytest.mark.parametrize(
    "layer", [0, -3, *(pytest.param(layer, marks=pytest.mark.slow) for layer in (-1, -2))]
)
def test_any_hidden_layer_is_compared(v1, v2, layer):
    for model, measure in ((v1, "mean_gene_cosine"), (v2, "cls_cosine")):
        cells = make_cells(model, [9])
        gene = int(cells.tokens[0][4])
        found = perturb_cells(model, cells, genes=[ids_of(model, [gene])], hidden_layer=layer)
        genes = cells.tokens[0].astype(int)
        genes = genes[genes >= model.vocabulary.first_gene_token]
        expected = by_hand(model, EditRule("delete"), genes, [gene], layer)[measure]
        value = value_of(found, "cell0", ids_of(model, [gene]), measure)
        assert value == pytest.approx(expected, abs=ATOL)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_what_follows_a_deleted_gene_can_keep_its_positions(request, version):
    model = request.getfixturevalue(version)
    cells = make_cells(model, [20, 9])
    found = perturb_cells(model, cells, positions="keep")
    tokens, first = cells.tokens[1].astype(np.int32), int(version == "v2")

    def embedded(left: np.ndarray) -> np.ndarray:
        """The cell of these tokens, each at its position in the whole cell."""
        hidden = encode(
            model.config,
            model.params,
            tokens[None, left],
            np.array([len(left)]),
            layers=model.config.layers - 1,
            positions_BT=left[None],
        )
        return np.asarray(hidden[0, 0] if first else hidden[0].mean(axis=0), np.float64)

    everything, measure = np.arange(len(tokens)), "cls_cosine" if first else "cell_cosine"
    for rank in (0, 4, 8):
        expected = cosine(embedded(everything), embedded(np.delete(everything, first + rank)))
        value = value_of(found, "cell1", ids_of(model, [tokens[first + rank]]), measure)
        assert value == pytest.approx(expected, abs=ATOL)


def test_shifts_towards_states_of_the_cells_at_hand(v1):
    cells = make_cells(v1, [12, 9, 14, 10, 11, 13])
    states = CellStates("kind", goal="b", start="a", alternatives=("c",))
    found = perturb_cells(v1, cells, states=states)
    assert set(found["cell"]) == {"cell0", "cell3"}
    vectors = {}
    for state in "abc":
        own = cells.obs["kind"].to_numpy() == state
        means = [
            encoded(v1, cells.tokens[i].tolist(), -1).mean(axis=0) for i in np.flatnonzero(own)
        ]
        vectors[state] = np.mean(means, axis=0)
    gene = int(cells.tokens[3][2])
    before, after = by_hand(v1, EditRule("delete"), cells.tokens[3].astype(int), [gene])["mean"]
    for state, vector in vectors.items():
        value = value_of(found, "cell3", ids_of(v1, [gene]), "state_shift", state)
        assert value == pytest.approx(cosine(after, vector) - cosine(before, vector), abs=1e-6)


def test_top_genes_and_means_are_those_of_all_genes(v1):
    cells = make_cells(v1, [9, 16, 24, 20])
    full = perturb_cells(v1, cells, gene_shifts="full")
    assert len(full) == sum(n * (n - 1) for n in (9, 16, 24, 20))
    top = perturb_cells(v1, cells, gene_shifts="top", top=3)
    lowest = full.sort_values("value").groupby(["cell", "perturbed"], observed=True).head(3)
    keys = ["cell", "perturbed", "affected"]
    joined = top.merge(lowest, on=keys)
    assert len(joined) == len(top) == 3 * (9 + 16 + 24 + 20)
    np.testing.assert_array_equal(joined["value_x"], joined["value_y"])
    means = perturb_cells(v1, cells, gene_shifts="means").set_index(["perturbed", "affected"])
    full["value"] = full["value"].astype(np.float64)
    expected = full.groupby(["perturbed", "affected"], observed=True)["value"]
    assert means.index.equals(expected.mean().index.astype("object")) or len(means) == len(
        expected.mean()
    )
    np.testing.assert_allclose(means["mean"], expected.mean().loc[means.index], atol=1e-12)
    np.testing.assert_allclose(means["sd"], expected.std(ddof=0).loc[means.index], atol=1e-9)
    np.testing.assert_array_equal(means["n"], expected.size().loc[means.index])


def table_with(model, cells, devices: int, tokens: int | None, **options) -> pd.DataFrame:
    return perturb_cells(
        model, cells, devices=jax.devices()[:devices], tokens_per_device=tokens, **options
    )


def test_eight_devices_and_other_batches_give_the_same(v1):
    # Many edits of a cell are shared by the devices; of single edits each device has own cells.
    cells = make_cells(v1, [24, 24, 9, 17, 24, 3])
    for options in ({"gene_shifts": "full"}, {"genes": ["ENSG00000000000"]}):
        one = table_with(v1, cells, 1, 32, **options)
        for devices, tokens in ((8, 32), (1, 200)):
            other = table_with(v1, cells, devices, tokens, **options)
            pd.testing.assert_frame_equal(other, one, rtol=0, atol=1e-6)


def test_nothing_is_compiled_while_it_runs(v1):
    cells = make_cells(v1, [24] * 4 + [8] * 3)
    perturber = perturber_of(v1, cells, PerturbationOptions(), tokens_per_device=96)
    # What other tests compiled would hide what is compiled here.
    jax.clear_caches()
    with perturber.progress(perturber.plan.edits) as progress:
        perturber.shifts(0, 30, progress)
        perturber.shifts(30, perturber.plan.edits, progress)
    assert forward.perturb_batch._cache_size() == len(perturber.lengths)


def test_a_batch_that_does_not_fit_is_halved_and_logged(v1, monkeypatch, caplog):
    cells = make_cells(v1, [24, 20, 24])
    whole = table_with(v1, cells, 1, 32 * 8, gene_shifts="full")
    run, sizes = perturber.perturb_batch, []

    def small_device(spec, params, states, cells, edits):
        sizes.append(spec.together or len(edits.slots))
        if sizes[-1] > 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        return run(spec, params, states, cells, edits)

    monkeypatch.setattr(perturber, "perturb_batch", small_device)
    halved = table_with(v1, cells, 1, 32 * 8, gene_shifts="full")
    pd.testing.assert_frame_equal(halved, whole, rtol=0, atol=1e-6)
    output = caplog.text
    assert "out of memory with 10 edited cells of 24 tokens" in output
    assert "going on with 5" in output and "going on with 2" in output
    # What it learned it keeps.
    assert [size for size in sizes if size > 3] == [10, 5]


def test_a_device_too_small_for_one_cell_is_reported_in_one_line(v1, monkeypatch):
    def no_device(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")

    monkeypatch.setattr(perturber, "perturb_batch", no_device)
    with pytest.raises(InputError, match="does not hold one cell of 16 tokens"):
        table_with(v1, make_cells(v1, [9]), 1, 32)


def test_other_failures_are_not_taken_for_lack_of_memory(v1, monkeypatch):
    def broken(*arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(perturber, "perturb_batch", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        table_with(v1, make_cells(v1, [9]), 1, 32)


def test_cells_are_chosen_as_the_original_does(v1):
    """Filter, start state, expressed genes, and only then the draw."""
    cells = make_cells(v1, [9] * 12)
    gene = int(cells.tokens[3][4])
    expressing = [i for i, tokens in enumerate(cells.tokens) if gene in tokens]
    name = ids_of(v1, [gene])
    found = perturb_cells(v1, cells, genes=[name], combine="together")
    assert set(found["cell"]) == {f"cell{i}" for i in expressing}
    drawn = perturb_cells(v1, cells, genes=[name], combine="together", max_cells=2)
    kept = np.sort(np.random.default_rng(42).permutation(len(expressing))[:2])
    assert set(drawn["cell"]) == {f"cell{expressing[i]}" for i in kept}
    other = perturb_cells(v1, cells, genes=["ENSG00000000000"], expressing=[name])
    assert set(other["cell"]) == set(found["cell"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"genes": ["ENSG00000000O01"]}, 'gene "ENSG00000000O01" is not in the vocabulary'),
        ({"genes": ["ENSG00000000O01"]}, 'did you mean "ENSG00000000'),
        (
            {"genes": ["ENSG00000000000", "ENSG00000000000.3"], "combine": "together"},
            "are the same gene",
        ),
        ({"genes": []}, "names no gene"),
        ({"genes": ["ENSG00000000001"]}, "is expressed in none of the 3 chosen cells"),
        ({"anchor": "ENSG00000000001"}, "none of the 3 chosen cells expresses ENSG00000000001"),
        ({"combine": "together"}, "cannot be perturbed together"),
        ({"combine": "pair"}, 'did you mean "pairs"'),
        ({"combine": "pairs", "genes": ["ENSG00000000000"]}, "pairs need at least 2 genes"),
        ({"combine": "pairs", "anchor": "ENSG00000000000"}, "leave one of them out"),
        ({"genes": ["ENSG00000000000"], "combinations": [["ENSG00000000000"]]}, "both given"),
        ({"combinations": []}, "name no gene"),
        ({"mode": "cls"}, "needs a <cls> token"),
        ({"mode": "cel"}, 'did you mean "cell"'),
        ({"hidden_layer": 1}, "layer` 1 is not in this model of 3 layers"),
        ({"positions": "kep"}, 'did you mean "keep"'),
        ({"positions": "keep", "edit": "overexpress"}, 'which edit "overexpress" does not go with'),
        ({"positions": "keep", "truncation": "refill"}, 'which truncation "refill" does not go'),
        ({"truncation": "refil"}, 'did you mean "refill"'),
        ({"gene_shifts": "al"}, 'no gene_shifts "al"'),
        ({"gene_shifts": "top", "top": 0}, "top is 0"),
        ({"classes": True}, "need a checkpoint with a cell classifier"),
        ({"states": ("kind", "d")}, 'has no value "d"'),
        ({"states": ("kin", "b")}, 'did you mean "kind"'),
        ({"states": ("kind", "a", "a")}, 'state "a" is named twice'),
        ({"state_embeddings": "somewhere"}, "but no states"),
        ({"expressing": ["nothing"]}, 'gene "nothing" is not in the vocabulary'),
        ({"tokens_per_device": 0}, "tokens_per_device` is 0"),
        ({"filters": {"kind": ["z"]}}, 'has no value "z"'),
    ],
)
def test_bad_input_is_reported_in_one_line(v1, options, words):
    cells = make_cells(v1, [9, 9, 9])
    with pytest.raises(InputError) as refused:
        if "states" in options:
            names = zip(("column", "goal", "start"), options["states"], strict=False)
            options = options | {"states": dict(names)}
        perturb_cells(v1, cells, **options)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


class CutCells(GivenCells):
    max_length = LIMIT


def test_cells_that_were_cut_cannot_be_refilled(v1):
    cells = make_cells(v1, [24, 9])
    stored = CutCells(cells.tokens, cells.obs, cells.vocabulary)
    with pytest.raises(InputError, match="the cells were cut at 24 tokens"):
        perturb_cells(v1, stored, truncation="refill")
    # Otherwise a cell is cut to the model's 24 positions.
    assert perturb_cells(v1, make_cells(v1, [30]))["perturbed"].nunique() == 24


def test_a_model_of_another_vocabulary_is_refused(v1, v2):
    with pytest.raises(InputError, match="a token would mean another gene"):
        perturb_cells(v1, make_cells(v2, [9]))


def test_a_cell_of_one_gene_is_counted_among_what_is_left_out(v1):
    # The first gene of all is in every cell, and in the small ones alone.
    first = v1.vocabulary.gene_id_of(v1.vocabulary.first_gene_token)
    found = perturb_cells(v1, make_cells(v1, [1, 5, 1]), genes=[first])
    assert set(found["cell"]) == {"cell1"}
    left_out = {"edits that leave no other gene": 2, "cells without an edit": 2}
    assert found.attrs["left_out"] == left_out
    with pytest.raises(InputError, match="none of the 2 chosen cells keeps another gene"):
        perturb_cells(v1, make_cells(v1, [1, 1]))


def test_a_gene_is_named_once_where_its_symbol_is_its_id(v1):
    cells = make_cells(v1, [5])
    vocabulary, tokens = v1.vocabulary, cells.read([0])[0]
    absent = next(t for t in range(vocabulary.first_gene_token, 60) if t not in tokens)
    gene = vocabulary.gene_id_of(absent)
    with pytest.raises(InputError) as refused:
        perturb_cells(v1, cells, genes=[gene])
    assert str(refused.value).startswith(f"gene {gene} is expressed in none of the 1 chosen cells")
