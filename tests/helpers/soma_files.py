"""TileDB-SOMA experiments, and collections shaped as CELLxGENE Census is, by the library itself."""

import os
import sys
from importlib.util import find_spec

import pandas as pd
import pyarrow as pa
import pytest

BUILD = {"census_build_date": "2025-11-08", "census_schema_version": "2.4.0"}
DATA_SETS = ("blood", "lung", "skin")


def require_tiledbsoma():
    """Skips a test where tiledbsoma is missing; fails in CI where the test extra has it."""
    if find_spec("tiledbsoma"):
        return
    reason = 'no tiledbsoma: install the census extra, pip install "geneformer_jax[census]"'
    if os.environ.get("CI") and sys.version_info < (3, 12):
        pytest.fail(reason)
    pytest.skip(reason)


def as_census_cells(adata):
    """A copy with the columns of cells and genes that Census has, its genes under `feature_id`."""
    cells = adata.copy()
    numbers = pd.Series(range(adata.n_obs), adata.obs_names)
    cells.obs["dataset_id"] = pd.Categorical([DATA_SETS[n % 3] for n in numbers])
    cells.obs["is_primary_data"] = (numbers % 3 > 0) | (numbers % 2 == 0)
    cells.obs["assay"] = [("10x 3' v3", "Smart-seq2")[n // 7 % 2] for n in numbers]
    names = {"ensembl_id": "feature_id", "gene_symbol": "feature_name"}
    cells.var = cells.var.rename(columns=names)
    return cells


def write_experiment(path, adata, layer="raw", **more_layers):
    """Writes an experiment with a measurement RNA, and more layers from other matrices."""
    import tiledbsoma
    import tiledbsoma.io

    if None in adata.layers:
        pytest.skip("from anndata 0.13 on X is the layer None, which tiledbsoma 2.3 cannot write")
    tiledbsoma.io.from_anndata(str(path), adata, measurement_name="RNA", X_layer_name=layer)
    for name, matrix in more_layers.items():
        with tiledbsoma.open(str(path), "w") as experiment:
            tiledbsoma.io.add_X_layer(experiment, "RNA", name, matrix)
    return path


def write_census(path, organisms):
    """Writes a Census: organism -> AnnData, whose cells have no ids but those of joining."""
    import tiledbsoma

    with tiledbsoma.Collection.create(str(path)) as root:
        info = root.add_new_collection("census_info")
        _add_table(info, "summary", pd.DataFrame({"label": BUILD.keys(), "value": BUILD.values()}))
        data = root.add_new_collection("census_data")
        for name, adata in organisms.items():
            _add_organism(data.add_new_collection(name, tiledbsoma.Experiment), adata)
    return path


def _add_organism(experiment, adata):
    """Writes cells, genes and counts as the builder of Census does."""
    import tiledbsoma

    _add_table(experiment, "obs", adata.obs)
    measurements = experiment.add_new_collection("ms", tiledbsoma.Collection)
    measurement = measurements.add_new_collection("RNA", tiledbsoma.Measurement)
    _add_table(measurement, "var", adata.var)
    layers = measurement.add_new_collection("X", tiledbsoma.Collection)
    raw = layers.add_new_sparse_ndarray("raw", type=pa.float32(), shape=adata.shape)
    raw.write(pa.SparseCOOTensor.from_scipy(adata.X.astype("float32").tocoo()))


def _add_table(collection, name, table):
    import tiledbsoma

    table = table.reset_index(drop=True).rename_axis("soma_joinid").reset_index()
    table = pa.Table.from_pandas(table, preserve_index=False)
    place, domain = f"{collection.uri}/{name}", [(0, len(table) - 1)]
    # Added by `add_new_dataframe` of a collection that is being made, categories lose their names.
    with tiledbsoma.DataFrame.create(place, schema=table.schema, domain=domain) as frame:
        frame.write(table)
    collection.set(name, tiledbsoma.open(place), use_relative_uri=True)
