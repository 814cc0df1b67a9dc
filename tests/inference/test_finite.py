"""Results that are NaN or infinite end in one line that names the cell and the layer."""

import dataclasses

import anndata as ad
import jax
import numpy as np
import pytest

from geneformer_jax.attention_analysis.api import attend_cells
from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.api import embed_cells
from geneformer_jax.finetuning.prediction.api import predict_cells
from geneformer_jax.model import pretrained
from geneformer_jax.model.config import RuntimeConfig
from geneformer_jax.model.heads import CELLS, HeadConfig
from geneformer_jax.model.pretrained import PretrainedModel, load_model, save_model
from geneformer_jax.model.runtime import Runtime
from geneformer_jax.perturbation.api import perturb_cells
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.toy import toy_cells, toy_model

LAYERS = 3
HALF = Runtime("float16")


def _perturb(model, cells, **options):
    return perturb_cells(model, cells, genes=["ENSG00000000000"], **options)


def _screen(model, cells, **options):
    states = {"column": "kind", "start": "a", "goal": "b"}
    return perturb_cells(model, cells, screen=True, split_points=2, states=states, **options)


def _attend(model, cells, **options):
    genes = {"some": [f"ENSG{i:011d}" for i in range(8)]}
    return attend_cells(model, cells, genes, min_cells=2, **options)


def _predict(model, cells, runtime):
    return predict_cells(model, cells, RuntimeConfig(precision=runtime.precision.name))


USES = {
    "embed": embed_cells,
    "embed genes": lambda *args, **how: embed_cells(*args, mode="gene", **how),
    "embed occurrences": lambda *args, **how: embed_cells(*args, mode="occurrence", **how),
    "perturb": _perturb,
    "screen": _screen,
    "attend": _attend,
    "predict": _predict,
}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Cells of which c3 alone has the last gene."""
    cells = toy_cells(6)
    counts = cells.X.tolil()
    counts[:, -1] = 0
    counts[3, -1] = 40
    cells.X = counts.tocsr()
    return cells


@pytest.fixture(scope="module")
def model() -> PretrainedModel:
    return toy_model(layers=LAYERS, head=HeadConfig(CELLS, ("a", "b"), 0.0))


def changed(model: PretrainedModel, change) -> PretrainedModel:
    params = jax.tree.map(np.array, model.params)
    change(params)
    return dataclasses.replace(model, params=params)


def refusal(use: str, *args, **how) -> str:
    with pytest.raises(InputError) as refused:
        USES[use](*args, **how)
    return str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_a_cell_that_overflows_is_named_with_the_layer(model, cells, use):
    """65,504 is the largest number of float16, in which float32 finds nothing wrong."""

    def enlarge_last_gene(params):
        params["embeddings"]["word"]["embedding"][-1] = 1e5

    overflowing = changed(model, enlarge_last_gene)
    USES[use](overflowing, cells, runtime=Runtime("float32"))
    told = refusal(use, overflowing, cells, runtime=HALF)
    assert told.startswith('no result for cell "c3"'), told
    assert "in float16 are NaN or infinite from the embeddings on; compute in float32" in told


@pytest.mark.parametrize("use", ["embed", pytest.param("predict", marks=pytest.mark.slow)])
def test_the_layer_is_the_first_that_is_not_finite(model, cells, use):
    def enlarge_second_layer(params):
        for name in ("up", "down"):
            params["blocks"][name]["kernel"][1] = 1e30

    told = refusal(use, changed(model, enlarge_second_layer), cells, runtime=Runtime("float32"))
    assert "from layer 2 of 3 on; the weights of" in told, told


@pytest.mark.slow
def test_a_head_that_overflows_is_told_from_the_encoder(model, cells):
    def enlarge_head(params):
        params[CELLS]["classifier"]["kernel"][:] = 1e38
        params[CELLS]["pooler"]["kernel"][:] = 1e38

    told = refusal("predict", changed(model, enlarge_head), cells, runtime=Runtime("float32"))
    assert "are finite, but what is made of them is not" in told, told


def test_weights_that_are_not_finite_are_named(model, cells, tmp_path, monkeypatch, capsys):
    def spoil(params):
        params["blocks"]["key"]["kernel"][2, 0, 1, 0] = np.nan

    spoilt = changed(model, spoil)
    named = "weights blocks/key/kernel of layer 3 are NaN or infinite"
    assert named in refusal("embed", spoilt, cells, runtime=Runtime("float32"), hidden_layer=0)
    with pytest.raises(InputError, match=named):
        save_model(spoilt, tmp_path / "model", {})
    with monkeypatch.context() as unchecked:
        unchecked.setattr(pretrained, "describe_not_finite", lambda params: "")
        save_model(spoilt, tmp_path / "model", {})
    for quantize in (None, "int8"):
        with pytest.raises(InputError, match=named):
            load_model(tmp_path / "model", quantize)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    given = {"checkpoint": "model", "cells": "cells.h5ad", "output": "out.h5ad"}
    flags = [f"--{name}={tmp_path / path}" for name, path in given.items()]
    status, _, error = run_command("embed", flags, monkeypatch, capsys)
    assert status == 1 and named in error
    assert_one_line(error)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "cells.h5ad"}
