"""Files of results with obs columns that HDF5 would take for groups."""

import anndata
import numpy as np
import pandas as pd

from geneformer_jax.inference.written_anndata import write_anndata


def test_columns_with_a_slash_are_written_under_free_names(tmp_path):
    obs = pd.DataFrame(
        {"cell/type": ["T", "B"], "cell_type": ["x", "y"], "a/b/c": [1, 2], "a_b/c": [3, 4]},
        index=["c1", "c2"],
    )
    adata = anndata.AnnData(np.ones((2, 3), np.float32), obs=obs)
    write_anndata(adata, tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert list(read.obs) == ["cell_type_", "cell_type", "a_b_c", "a_b_c_"]
    assert read.obs["cell_type_"].tolist() == ["T", "B"]
    assert read.obs["cell_type"].tolist() == ["x", "y"]
    assert list(adata.obs) == list(obs), "what was given is not changed"
