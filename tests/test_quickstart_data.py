"""The demonstration's counts: recovered exactly, or refused."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy
from absl import flags
from scipy import sparse

from geneformer_jax.common.errors import InputError


@pytest.fixture(scope="module")
def quickstart():
    """launch/quickstart.py as a module; its flags are taken away again."""
    path = Path(__file__).resolve().parents[1] / "launch" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart_script", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["quickstart_script"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["quickstart_script"]
    for name in ("counts", "label", "output"):
        delattr(flags.FLAGS, name)


def logged_counts(seed: int = 0) -> tuple[np.ndarray, np.ndarray, sparse.csr_matrix]:
    rng = np.random.default_rng(seed)
    counts = rng.negative_binomial(0.3, 0.05, size=(50, 40))
    totals = counts.sum(axis=1) + rng.integers(1, 500, 50)
    logged = np.round(np.log1p(counts / totals[:, None] * 1e4), 3).astype(np.float32)
    return counts, totals, sparse.csr_matrix(logged)


def test_known_counts_come_back(quickstart):
    counts, totals, logged = logged_counts()
    recovered = quickstart.recover_counts(logged, totals)
    np.testing.assert_array_equal(recovered.toarray(), counts)


def test_values_of_no_integer_are_refused(quickstart):
    _, totals, logged = logged_counts()
    logged.data[7] += 0.004
    with pytest.raises(InputError, match=r"1 of .* not log"):
        quickstart.recover_counts(logged, totals)


def test_wrong_totals_are_refused(quickstart):
    _, totals, logged = logged_counts()
    with pytest.raises(InputError, match="not log"):
        quickstart.recover_counts(logged, totals * 1.02)


def test_values_too_coarse_to_name_one_count_are_refused(quickstart):
    totals = np.array([10_000_000])
    logged = sparse.csr_matrix(np.round(np.log1p([[5_000_000 / 1e3]]), 3))
    with pytest.raises(InputError, match="more than one integer"):
        quickstart.recover_counts(logged, totals)


def test_more_counts_than_the_total_are_refused(quickstart):
    logged = sparse.csr_matrix(np.round(np.log1p([[4000.0, 4000.0, 4000.0]]), 3))
    with pytest.raises(InputError, match="more counts than the cell has"):
        quickstart.recover_counts(logged, np.array([10.0]))


def test_demo_cells_are_the_original_counts(quickstart):
    cells = quickstart.demo_cells()
    assert cells.shape == (700, 765)
    assert cells.X.dtype == np.int32
    assert cells.X.data.min() >= 1
    assert cells.obs["bulk_labels"].nunique() == 10
    assert "CD79A" in cells.var_names
    # Each stored value is the rounded logarithm of the recovered count, and of no other.
    stored = scanpy.datasets.pbmc68k_reduced().raw.X.toarray()
    per_10k = cells.X.toarray() / cells.obs["n_counts"].to_numpy(float)[:, None] * 1e4
    np.testing.assert_allclose(np.log1p(per_10k), stored, atol=5.1e-4)
    assert np.all(cells.X.sum(axis=1).A1 <= cells.obs["n_counts"])


def test_label_is_the_first_column_of_categories(quickstart):
    obs = pd.DataFrame(
        {
            "n_counts": [1.0, 2.0, 3.0],
            "sample": ["x", "x", "x"],
            "kind": pd.Categorical(["a", "b", None]),
            "other": ["p", "q", "q"],
        }
    )
    assert quickstart.choose_label(obs) == "kind"
    assert quickstart.choose_label(obs[["n_counts", "sample"]]) == ""


def test_a_folder_of_another_file_is_not_mixed_with(quickstart, tmp_path):
    first, second = tmp_path / "a" / "c.h5ad", tmp_path / "b" / "c.h5ad"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text(path.parent.name)
    quickstart.claim(tmp_path / "out", first)
    quickstart.claim(tmp_path / "out", first)
    with pytest.raises(InputError, match=r"made from another c\.h5ad; remove it"):
        quickstart.claim(tmp_path / "out", second)
