"""Viewers of others open what is written for them, each with its own code."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import anndata as ad
import numpy as np
import pytest

from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.inference.viewers import CELLS, CONFIG, with_counts, write_vitessce
from tests.helpers.toy import toy_cells

VITESSCE = "@vitessce/schemas"
CHECK = f"""
import {{ readFileSync }} from "fs";
import {{ anndataZarrSchema, upgradeAndParse }} from "{VITESSCE}";
const config = upgradeAndParse(JSON.parse(readFileSync(process.argv[2])));
anndataZarrSchema.strict().parse(config.datasets[0].files[0].options);
console.log(config.layout.map(view => view.component).join());
"""
MINUTES = 5


@pytest.fixture
def cells() -> ad.AnnData:
    """Cells with embeddings, labels, counts and symbols."""
    counts = toy_cells(60)
    counts.var["gene_symbol"] = [f"G{i}" for i in range(counts.n_vars)]
    rng = np.random.default_rng(0)
    shown = ad.AnnData(obs=counts.obs[["kind"]].assign(**{"a/b": list("xy") * 30}))
    shown.obsm["X_umap"] = rng.normal(size=(60, 2)).astype(np.float32)
    shown.obsm["X_geneformer"] = rng.normal(size=(60, 8)).astype(np.float32)
    return with_counts(shown, AnnDataSource(counts))


@pytest.mark.parametrize("counted", [True, False])
def test_paths_of_the_config_are_in_the_store(cells, tmp_path, counted):
    shown = cells if counted else ad.AnnData(obs=cells.obs, obsm=cells.obsm)
    folder = tmp_path / "cells.vitessce"
    write_vitessce(folder, shown, "http://host", ["kind", "a/b"], {"UMAP": "X_umap"})
    config = json.loads((folder / CONFIG).read_text())
    options = config["datasets"][0]["files"][0]["options"]
    stored = ad.read_zarr(folder / CELLS)
    assert [each["path"] for each in options["obsSets"]] == ["obs/kind", "obs/a_b"]
    assert set(stored.obs) == {"kind", "a_b"}
    assert ("obsFeatureMatrix" in options) == ("featureLabels" in options) == counted
    components = [view["component"] for view in config["layout"]]
    assert ("featureList" in components) == counted
    # Views tile the page, which is 12 by 12.
    assert sum(view["w"] * view["h"] for view in config["layout"]) == 144


@pytest.mark.slow
def test_vitessce_takes_the_config(cells, tmp_path):
    npm, node = shutil.which("npm"), shutil.which("node")
    if not (npm and node):
        pytest.skip("no node: install Node.js with npm to check with Vitessce's own schema")
    install = [npm, "install", "--no-audit", "--no-fund", "--prefix", tmp_path, VITESSCE]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip(f"{VITESSCE} cannot be fetched: no network?")
    folder = tmp_path / "cells.vitessce"
    write_vitessce(folder, cells, "http://host", ["kind", "a/b"], {"UMAP": "X_umap"})
    (tmp_path / "check.mjs").write_text(CHECK)
    done = subprocess.run(
        [node, tmp_path / "check.mjs", folder / CONFIG], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "scatterplot,obsSets,obsSetSizes,featureList"


@pytest.mark.slow
def test_cellxgene_opens_the_file(cells, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    if subprocess.run([programs / "pip", "install", "cellxgene"], capture_output=True).returncode:
        pytest.skip("cellxgene cannot be fetched: no network?")
    cells.obs.columns = ["kind", "a_b"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [programs / "cellxgene", "launch", tmp_path / "cells.h5ad", "--host=127.0.0.1",
         f"--port={port}", "--disable-annotations"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        schema = json.loads(fetch(f"http://127.0.0.1:{port}/api/v0.2/schema", server))["schema"]
    finally:
        server.kill()
        server.communicate()
    assert schema["dataframe"] == {"nObs": 60, "nVar": cells.n_vars, "type": "float32"}
    assert {each["name"] for each in schema["layout"]["obs"]} == {"umap", "geneformer"}
    assert "kind" in {each["name"] for each in schema["annotations"]["obs"]["columns"]}


def fetch(url: str, server: subprocess.Popen) -> bytes:
    """Waits for a server that is starting."""
    deadline = time.monotonic() + 60 * MINUTES
    while time.monotonic() < deadline:
        assert server.poll() is None, server.stdout.read()
        try:
            with urllib.request.urlopen(url) as answer:
                return answer.read()
        except urllib.error.URLError:
            time.sleep(0.5)
    raise AssertionError(f"no answer from {url} in {MINUTES} minutes")
