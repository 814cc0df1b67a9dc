"""A small model, and cells for it as they come in practice."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from tests.helpers.toy import toy_cells, toy_model

EMPTY = 5


@pytest.fixture(scope="session")
def model():
    return toy_model()


@pytest.fixture
def adata():
    """24 cells, of which one expresses no gene; counts in X."""
    cells = toy_cells(24)
    counts = cells.X.toarray()
    counts[EMPTY] = 0
    cells.X = sparse.csr_matrix(counts)
    return cells


@pytest.fixture
def normalised(adata):
    """The same as it is after an analysis: counts in a layer, ids in a column of var."""
    adata.layers["counts"] = adata.X.copy()
    adata.var["gene_ids"] = pd.Categorical(adata.var_names)
    adata.var_names = [f"Gene{n}" for n in range(adata.n_vars)]
    adata.raw = adata
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray() / 7))
    return adata
