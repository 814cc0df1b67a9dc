"""State embeddings: exact, in both conventions of the median, and safe in a file."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.embedder import Embedded
from geneformer_jax.embedding.states import StateEmbeddings, state_embeddings


@pytest.fixture(scope="module")
def embedded() -> Embedded:
    """Two layers of 11 cells: 4 of state a, 5 of b, 1 of c, 1 of none."""
    states = [*"abab", None, *"babbac"]
    table = pd.DataFrame(
        {"state": pd.Categorical(states), "number": range(11)}, index=[f"c{i}" for i in range(11)]
    )
    rows = np.random.default_rng(0).normal(size=(11, 2, 6)).astype(np.float32)
    return Embedded(rows, table, (-1, 0), {"mode": "cell", "vocabulary_hash": "abc"})


def test_statistics_are_those_of_each_states_cells(embedded):
    found = state_embeddings(embedded, "state", quantiles=(0.1,))
    assert found.states == ["a", "b", "c"]
    for k, layer in enumerate((-1, 0)):
        for state in found.states:
            chosen = (embedded.table["state"] == state).to_numpy()
            ordered = np.sort(embedded.rows[chosen, k].astype(np.float64), axis=0)
            n = len(ordered)
            middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
            place = 0.1 * (n - 1)
            above = min(int(place) + 1, n - 1)
            tenth = ordered[int(place)] + (place % 1) * (ordered[above] - ordered[int(place)])
            expected = {
                "mean": ordered.sum(axis=0) / n,
                "median": middle,
                "lower_median": ordered[(n - 1) // 2],
                "quantile_0.1": tenth,
            }
            for statistic, vector in expected.items():
                ours = found.vectors(statistic, layer)[state]
                assert ours.dtype == np.float32
                np.testing.assert_allclose(ours, vector, atol=1e-6)
    cells = found.table.drop_duplicates("state").set_index("state")["cells"]
    assert cells.to_dict() == {"a": 4, "b": 5, "c": 1}
    assert found.facts["cells_without_state"] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["embedding"]),
        lambda table: table.drop_columns(["statistic"]),
        lambda table: table.set_column(0, "state", pa.nulls(len(table), pa.string())),
        lambda table: table.set_column(4, "embedding", pa.array([[1.0]] * len(table))),
        lambda table: table.set_column(3, "statistic", pa.array([[1]] * len(table))),
        lambda table: table.slice(0, 0),
        lambda table: table.replace_schema_metadata({b"geneformer_states": b"[]"}),
        lambda table: table.replace_schema_metadata({b"geneformer_states": b"{"}),
        lambda table: table.replace_schema_metadata({b"geneformer_states": b'{"column": 3}'}),
    ],
)
def test_a_file_that_was_changed_is_refused(embedded, tmp_path, change):
    path = tmp_path / "states.parquet"
    state_embeddings(embedded, "state").save(path)
    assert StateEmbeddings.load(path).column == "state"
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(InputError, match=r"holds no state embeddings \(.*; write some"):
        StateEmbeddings.load(path)


def test_flipped_bits_of_embeddings_are_told(embedded, tmp_path):
    path = tmp_path / "states.parquet"
    state_embeddings(embedded, "state").save(path)
    expected = StateEmbeddings.load(path).table
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            found = StateEmbeddings.load(path).table
            np.testing.assert_array_equal(
                np.stack(found["embedding"]), np.stack(expected["embedding"])
            )
        except InputError as error:
            assert str(path) in str(error)


@pytest.mark.parity
def test_a_state_with_a_number_that_is_none_is_refused_by_its_cell(embedded):
    rows = embedded.rows.copy()
    rows[8, 1, 3] = np.nan
    with pytest.raises(InputError, match=r'1 of 11 rows .*"c8"'):
        state_embeddings(dataclasses.replace(embedded, rows=rows), "state")


def test_lower_medians_are_pytorchs(embedded, torch):
    found = state_embeddings(embedded, "state").vectors("lower_median", 0)
    for state, vector in found.items():
        chosen = (embedded.table["state"] == state).to_numpy()
        theirs = torch.from_numpy(embedded.rows[chosen, 1]).median(dim=0).values
        np.testing.assert_array_equal(vector, theirs.numpy())


def test_what_is_saved_is_what_is_loaded(embedded, tmp_path):
    found = state_embeddings(embedded, "state")
    found.save(tmp_path / "states.parquet")
    loaded = StateEmbeddings.load(tmp_path / "states.parquet")
    assert loaded.column == "state"
    assert loaded.facts == found.facts
    for layer in (-1, 0):
        for statistic in ("mean", "median", "lower_median", "quantile_0.25", "quantile_0.75"):
            expected = found.vectors(statistic, layer)
            for state, vector in loaded.vectors(statistic, layer).items():
                np.testing.assert_array_equal(vector, expected[state])


def test_wrong_requests_end_with_one_line(embedded, tmp_path):
    found = state_embeddings(embedded, "state")
    with pytest.raises(InputError, match='did you mean "median"'):
        found.vectors("medain", 0)
    with pytest.raises(InputError, match="no layer None; they have -1, 0"):
        found.vectors()
    with pytest.raises(InputError, match='did you mean "state"'):
        state_embeddings(embedded, "stat")
    with pytest.raises(InputError, match=r"quantile 1.5 is not between 0 and 1"):
        state_embeddings(embedded, "state", quantiles=(1.5,))
    with pytest.raises(InputError, match="does not exist"):
        StateEmbeddings.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("text")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    for name in ("text", "other"):
        with pytest.raises(InputError, match="holds no state embeddings"):
            StateEmbeddings.load(tmp_path / f"{name}.parquet")


@pytest.mark.reference_data
def test_mean_and_lower_median_are_the_originals(reference_dir):
    expected = np.load(reference_dir / "embeddings.npz")
    rows = expected["v1_cell_layerm1"][:, None]
    table = pd.DataFrame({"all": "one"}, index=expected["v1_cell_layerm1_cell_id"])
    found = state_embeddings(Embedded(rows, table, (-1,)), "all")
    for statistic, key in (("mean", "exact_mean"), ("lower_median", "exact_median")):
        theirs = expected[f"v1_cell_{key}_layerm1"]
        np.testing.assert_allclose(found.vectors(statistic)["one"], theirs, rtol=0, atol=1e-6)
    usual = found.vectors("median")["one"]
    assert np.abs(usual - expected["v1_cell_exact_median_layerm1"]).max() > 1e-4
