"""What edits do to a cell, compared with lists of genes edited in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.engine import forward
from geneformer_jax.perturbation.engine.edits import EditBatch, EditRule, SpecialTokens, edits_of
from geneformer_jax.perturbation.engine.forward import BaselineCells
from geneformer_jax.perturbation.engine.gene_sets import GeneSets
from tests.helpers.slow_perturbation import edited_by_hand, framed

PADDED = 16
SPECIAL = {"V1": SpecialTokens(12, False, 2), "V2": SpecialTokens(12, True, 4)}


def edited_on_device(rule: EditRule, special: SpecialTokens, genes: list[int], sets_EK: np.ndarray):
    cell = special.genes_of(np.array(framed(special, genes)))
    edits = edits_of(rule, special, cell, sets_EK, PADDED)
    rows = len(sets_EK)
    seen = framed(special, list(special.in_sight(cell)))
    tokens_CT = np.zeros((rows, PADDED), np.int32)
    tokens_CT[:, : len(seen)] = seen
    beyond = np.zeros((rows, sets_EK.shape[1] if rule.refill else 0), np.int32)
    next_genes = cell[len(special.in_sight(cell)) :][: beyond.shape[1]]
    beyond[:, : len(next_genes)] = next_genes
    cells = BaselineCells(tokens_CT, beyond, np.full(rows, len(seen), np.int32), edits.cut)
    cells = jax.tree.map(jnp.asarray, cells)
    each = edits._replace(slots=np.arange(rows)).for_device()
    tokens, lengths, *_ = forward._edit(special, cells, jax.tree.map(jnp.asarray, each))
    original = forward._arrange(
        special,
        jnp.concatenate([cells.tokens_CT, cells.beyond_CK], axis=1),
        forward._keys(special, cells, cells.cut_C),
        cells,
    )
    return as_lists(*original[:2]), as_lists(tokens, lengths)


def as_lists(tokens, lengths) -> list[list[int]]:
    tokens, lengths = np.asarray(tokens), np.asarray(lengths)
    assert (tokens[np.arange(tokens.shape[1]) >= lengths[:, None]] == 0).all()
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


RULES = [
    EditRule("delete"),
    EditRule("overexpress"),
    EditRule("inhibit", ranks=1),
    EditRule("inhibit", ranks=4),
    EditRule("inhibit", quantile=0.5),
    EditRule("activate", ranks=1),
    EditRule("activate", ranks=3),
    EditRule("activate", quantile=1.0),
]


@pytest.mark.parametrize("refill", [False, True], ids=["original", "refill"])
@pytest.mark.parametrize("version", SPECIAL)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.kind}-{r.ranks or r.quantile}")
def test_edits_are_those_made_by_hand(rule, version, refill):
    rule, special = EditRule(rule.kind, rule.ranks, rule.quantile, refill), SPECIAL[version]
    rng = np.random.default_rng(0)
    # Cells below, near, at and beyond the limit of 12 tokens.
    for length in (3, 7, 9, 10, 11, 12, 13, 15, 20):
        genes = (rng.permutation(30)[:length] + special.first_gene_token).tolist()
        limit = special.limit - 2 * special.framed
        reach = genes if refill and rule.raises_genes else genes[:limit]
        absent = [token for token in range(4, 40) if token not in genes]
        pool = reach + absent[:3] if rule.adds_genes else reach
        sets = [rng.permutation(pool)[: rng.integers(1, 3)].tolist() for _ in range(12)]
        filled = np.array([[*each, -1][:2] for each in sets], np.int32)
        originals, edited = edited_on_device(rule, special, genes, filled)
        for genes_of_set, original, found in zip(sets, originals, edited, strict=True):
            expected = edited_by_hand(rule, special, genes, genes_of_set)
            assert (original, found) == expected, (genes, genes_of_set)


def test_an_edit_of_a_small_cell():
    special, genes = SPECIAL["V1"], [10, 11, 12, 13, 14, 15]
    one = np.array([[12]], np.int32)
    expected = {
        EditRule("delete"): [10, 11, 13, 14, 15],
        EditRule("overexpress"): [12, 10, 11, 13, 14, 15],
        EditRule("inhibit", ranks=2): [10, 11, 13, 14, 12, 15],
        EditRule("inhibit", ranks=9): [10, 11, 13, 14, 15, 12],
        EditRule("inhibit", quantile=0.5): [10, 11, 13, 14, 15, 12],
        EditRule("activate", ranks=1): [10, 12, 11, 13, 14, 15],
        EditRule("activate", ranks=9): [12, 10, 11, 13, 14, 15],
    }
    for rule, tokens in expected.items():
        assert edited_on_device(rule, special, genes, one)[1] == [tokens]


def test_genes_from_beyond_the_cut_slide_in_with_refill_alone():
    special, genes = SPECIAL["V1"], list(range(10, 24))
    one = np.array([[10]], np.int32)
    assert edited_on_device(EditRule("delete"), special, genes, one)[1] == [list(range(11, 22))]
    refilled = edited_on_device(EditRule("delete", refill=True), special, genes, one)[1]
    assert refilled == [list(range(11, 23))]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "deleet"}, 'no edit "deleet" (did you mean "delete"?)'),
        ({"kind": "inhibit"}, "needs either ranks"),
        ({"kind": "inhibit", "ranks": 1, "quantile": 0.1}, "needs either ranks"),
        ({"kind": "delete", "ranks": 1}, "leave ranks and quantile out"),
        ({"kind": "activate", "ranks": 0}, "at least 1 rank"),
        ({"kind": "activate", "quantile": 1.5}, "above 0 and at most 1"),
    ],
)
def test_rules_that_mean_nothing_are_refused(arguments, words):
    with pytest.raises(InputError) as refused:
        EditRule(**arguments)
    assert words in str(refused.value)


V1 = SPECIAL["V1"]
CELL = np.array([9, 4, 7, 5], np.int32)


def sets_in(sets: GeneSets, kind: str = "delete") -> list[tuple[int, ...]]:
    rule = EditRule(kind, ranks=1 if kind in ("inhibit", "activate") else None)
    return [tuple(row[row >= 0].tolist()) for row in sets.in_cell(rule, V1, CELL)]


def test_which_genes_are_perturbed_together():
    assert sets_in(GeneSets()) == [(9,), (4,), (7,), (5,)]
    # The gene that would not move is left out, as in the original.
    assert sets_in(GeneSets(), "overexpress") == [(4,), (7,), (5,)]
    assert sets_in(GeneSets(), "activate") == [(4,), (7,), (5,)]
    assert sets_in(GeneSets(), "inhibit") == [(9,), (4,), (7,)]
    assert sets_in(GeneSets((7, 3, 9))) == [(7,), (9,)]
    assert sets_in(GeneSets((7, 3, 9)), "overexpress") == [(7,), (3,), (9,)]
    assert sets_in(GeneSets((7, 9), "together")) == [(7, 9)]
    assert sets_in(GeneSets((7, 3), "together")) == []
    assert sets_in(GeneSets((7, 3), "together"), "overexpress") == [(7, 3)]
    singles, pairs = [(4,), (7,), (9,)], [(4, 7), (4, 9), (7, 9)]
    assert sets_in(GeneSets((9, 4, 7), "pairs")) == singles + pairs
    assert len(sets_in(GeneSets(None, "pairs"))) == 4 + 6
    assert sets_in(GeneSets((4, 9, 7), anchor=7)) == [(7,), (4,), (9,), (7, 4), (7, 9)]
    assert sets_in(GeneSets(anchor=3)) == []
    combinations = GeneSets(combinations=((4, 9, 7), (4, 3), (5,)))
    assert sets_in(combinations) == [(4,), (9,), (7,), (5,), (4, 9, 7)]


def test_batches_of_edits_are_stacked_filled_up_and_taken_apart():
    rule, cells = EditRule("delete"), [CELL, np.array([7, 3], np.int32)]
    batches = [
        edits_of(rule, V1, cell, GeneSets().in_cell(rule, V1, cell), PADDED) for cell in cells
    ]
    stacked = EditBatch.stack(batches)
    assert stacked.slots.tolist() == [0, 0, 0, 0, 1, 1]
    assert [cell.tolist() for cell in stacked.cells] == [[9, 4, 7, 5], [7, 3]]
    assert stacked.sets[:, 0].tolist() == [9, 4, 7, 5, 7, 3]
    own = stacked.take(stacked.slots == 1).pad(4, PADDED + 1)
    assert own.numbers.tolist() == [0, 1, -1, -1]
    assert own.positions[:, 0].tolist() == [0, 1, PADDED + 1, PADDED + 1]
    assert own.sets[:, 0].tolist() == [7, 3, -1, -1]
    assert own.slots.tolist() == [1, 1, 0, 0]
