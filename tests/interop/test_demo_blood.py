"""The small model that comes with the package."""

import re
import subprocess
import sys

import anndata as ad
import jax
import numpy as np
import pytest
from safetensors import safe_open

import geneformer_jax as gf
from geneformer_jax.common.provenance import FILE_NAME
from geneformer_jax.embedding.label_accuracy import label_accuracy, log_count_components
from geneformer_jax.interop.model_folders import SHIPPED
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary
from geneformer_jax.training.config import pretrain_config, typed_config
from geneformer_jax.training.initial.start import start_state
from geneformer_jax.training.run import prepare_run
from tests.helpers.toy import make_store

FOLDER = SHIPPED["demo-blood"]


@pytest.fixture(scope="module")
def model():
    return gf.load_model("demo-blood")


def test_it_is_small_in_bfloat16_and_names_no_machine():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 8e6
    with safe_open(FOLDER / "model.safetensors", "numpy") as weights:
        names = weights.keys()
        assert {weights.get_slice(name).get_dtype() for name in names} == {"BF16"}
    for path in (FOLDER / FILE_NAME, FOLDER / "README.md"):
        assert not re.search(r"""(?<![\w.:/])/(?!/)\w""", path.read_text()), path


def test_what_lies_by_that_name_goes_first(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-blood").mkdir()
    with pytest.raises(gf.InputError, match=r"no checkpoint in .*demo-blood"):
        gf.load_model("demo-blood")


def test_a_command_takes_its_name_for_a_model_and_for_a_vocabulary(tmp_path):
    cells = ad.AnnData(np.array([[3, 1], [0, 2], [5, 5]], np.float32))
    cells.var_names = gf.load_model("demo-blood").vocabulary.gene_ids[:2]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    flags = [f"--counts={tmp_path / 'cells.h5ad'}", f"--output={tmp_path / 'store'}"]
    command = [sys.executable, "-m", "geneformer_jax.tokenize", "--vocabulary=demo-blood"]
    subprocess.run([*command, *flags, "--min_genes=1"], check=True)
    store = gf.CellStore.open(tmp_path / "store")
    assert store.lengths.tolist() == [2, 1, 2]


def test_pretraining_goes_on_from_it(model, tmp_path):
    cells = ad.AnnData(np.arange(1.0, 21, dtype=np.float32).reshape(4, 5))
    cells.var_names = model.vocabulary.gene_ids[:5]
    store = make_store(tmp_path / "store", cells, model.vocabulary)
    config = pretrain_config(model.config, vocabulary_size=0)
    config.update_from_flattened_dict({"initial": "demo-blood", "data.cells_per_batch": 2})
    config.evaluation.held_out_cells = 1
    run = prepare_run(typed_config(config), store, jax.devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, run.stored(start_state(run)).params, model.params)


@pytest.mark.reference_data
def test_its_genes_have_the_ids_and_medians_of_the_original(model, data_dir):
    original = read_original_vocabulary(data_dir / "dictionaries" / "v1_gc30M")
    medians = dict(zip(original.gene_ids, original.medians, strict=True))
    ours = model.vocabulary
    assert ours.medians.tolist() == [medians[gene] for gene in ours.gene_ids]
    assert ours.special_tokens == original.special_tokens


@pytest.mark.reference_data
def test_it_tells_sorted_cells_apart_that_it_was_not_trained_on(model, data_dir):
    cells = ad.read_h5ad(data_dir / "cells" / "pbmc_facs_zheng.h5ad")
    cells = cells[:: len(cells) // 400].copy()
    gf.tl.embed(cells, model)
    labels = cells.obs["celltype"]
    ours = label_accuracy(cells.obsm["X_geneformer"], labels)
    components = log_count_components(cells.X, cells.obs["n_counts"].to_numpy())
    baseline = label_accuracy(components, labels)
    assert ours.accuracy > baseline.accuracy > baseline.shuffled + 0.3
