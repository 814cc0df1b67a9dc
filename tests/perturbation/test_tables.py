"""Tables of shifts over cells, beside pandas on all values at once."""

import numpy as np
import pandas as pd

from geneformer_jax.perturbation.engine.shifts import Shifts
from geneformer_jax.perturbation.statistics.aggregate import summarise
from geneformer_jax.perturbation.tables import gene_means_table, merge_gene_means
from tests.helpers.shift_pieces import cut
from tests.helpers.toy import toy_vocabulary

KEYS = ["perturbed", "perturbed_symbol", "measure", "state"]


def shifts_near_one(rows: int = 5_000) -> pd.DataFrame:
    """Cosines that differ in the 8th digit alone, where E[x^2] - E[x]^2 has no digit left."""
    rng = np.random.default_rng(0)
    edit = rng.integers(0, 7, rows)
    return pd.DataFrame(
        {
            "cell": [f"c{i}" for i in range(rows)],
            "perturbed": [f"G{i}" for i in edit],
            "perturbed_symbol": [f"g{i}" for i in edit],
            "measure": rng.choice(["cell_cosine", "state_shift"], rows),
            "state": rng.choice(["", "a"], rows),
            "value": 1 - rng.random(rows) * 1e-8,
        }
    )


def test_a_summary_has_the_spread_of_nearly_equal_cosines():
    frame = shifts_near_one()
    table = summarise(cut(frame, 700))
    values = frame.groupby(KEYS)["value"]
    expected = values.agg(mean="mean", sd=lambda each: each.std(ddof=0), n="size").reset_index()
    assert table[[*KEYS, "n"]].equals(expected[[*KEYS, "n"]])
    np.testing.assert_allclose(table["mean"], expected["mean"], rtol=1e-15)
    np.testing.assert_allclose(table["sd"], expected["sd"], rtol=1e-6)
    assert (table["sd"] > 1e-9).all()


def test_means_of_parts_join_to_those_of_all_cells():
    vocabulary, rng = toy_vocabulary(), np.random.default_rng(0)
    edits, genes = 40, 30
    sets_EK = rng.integers(10, 14, (edits, 1)).astype(np.int32)
    affected = rng.integers(20, 23, (edits, genes)).astype(np.int32)
    values = (1 - rng.random((edits, genes)) * 1e-6).astype(np.float32)

    def part_of(chosen: np.ndarray) -> Shifts:
        return Shifts(
            numbers=chosen,
            cells=chosen.astype(np.int32),
            sets_EK=sets_EK[chosen],
            ranks_E=np.ones(len(chosen), np.int32),
            values_EM=np.zeros((len(chosen), 2), np.float32),
            gene_edits=np.repeat(np.arange(len(chosen)), genes),
            affected=affected[chosen].reshape(-1),
            gene_values=values[chosen].reshape(-1),
        )

    parts = [part_of(chosen) for chosen in np.array_split(np.arange(edits), 3)]
    tables = [gene_means_table(part, vocabulary) for part in parts]
    found = merge_gene_means(tables, "delete").to_pandas()
    frame = pd.DataFrame(
        {
            "perturbed": np.repeat(sets_EK[:, 0], genes),
            "affected": affected.reshape(-1),
            "value": values.reshape(-1).astype(np.float64),
        }
    )
    expected = frame.groupby(["perturbed", "affected"])["value"]
    assert found["perturbed"].tolist() == [
        vocabulary.gene_id_of(token) for token, _ in expected.groups
    ]
    assert found["affected"].tolist() == [
        vocabulary.gene_id_of(token) for _, token in expected.groups
    ]
    np.testing.assert_array_equal(found["n"], expected.size())
    np.testing.assert_allclose(found["mean"], expected.mean(), rtol=1e-15)
    np.testing.assert_allclose(found["sd"], expected.std(ddof=0), rtol=1e-6)


def test_shifts_are_joined_in_the_order_of_the_plan():
    one = Shifts(
        numbers=np.array([7, 5]),
        cells=np.array([1, 0], np.int32),
        sets_EK=np.array([[7], [5]], np.int32),
        ranks_E=np.array([2, 9], np.int32),
        values_EM=np.array([[0.7], [0.5]], np.float32),
        gene_edits=np.array([0, 1, 1], np.int32),
        affected=np.array([70, 50, 51], np.int32),
        gene_values=np.array([0.70, 0.50, 0.51], np.float32),
    )
    other = Shifts(
        numbers=np.array([6]),
        cells=np.array([0], np.int32),
        sets_EK=np.array([[6]], np.int32),
        ranks_E=np.array([4], np.int32),
        values_EM=np.array([[0.6]], np.float32),
        gene_edits=np.array([0, 0], np.int32),
        affected=np.array([60, 61], np.int32),
        gene_values=np.array([0.60, 0.61], np.float32),
    )
    joined = Shifts.join([one, other])
    assert joined.numbers.tolist() == [5, 6, 7]
    assert joined.cells.tolist() == [0, 0, 1]
    assert joined.sets_EK[:, 0].tolist() == [5, 6, 7]
    assert joined.ranks_E.tolist() == [9, 4, 2]
    assert joined.gene_edits.tolist() == [0, 0, 1, 1, 2]
    assert joined.affected.tolist() == [50, 51, 60, 61, 70]
