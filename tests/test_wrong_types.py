"""Public functions given arguments of wrong types: one line with argument, value and remedy."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import geneformer_jax as gf
from geneformer_jax.inference.cells import select_cells
from tests.helpers.toy import make_store, toy_cells, toy_model

FRAME = pd.DataFrame({"ENSG00000000000": [1, 2]})
MATRIX = sparse.csr_matrix(np.eye(3))


@pytest.fixture(scope="module")
def model():
    return toy_model()


@pytest.fixture(scope="module")
def cells(model):
    return gf.tokenize_cells(toy_cells(6), model.vocabulary)


@pytest.mark.parametrize(
    "function", ["embed_cells", "perturb_cells", "attend_cells", "validate_perturbations"]
)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": "run/checkpoint"}, ("`model`", "'run/checkpoint'", "load_model")),
        ({"model": None}, ("`model` is None", "load_model")),
        ({"cells": FRAME}, ("`cells` is a DataFrame", "AnnData")),
        ({"cells": MATRIX}, ("`cells` is a csr_matrix", "AnnData")),
        ({"cells": ["a.h5ad", "b.h5ad"]}, ("`cells` is a list", "AnnData")),
        ({"cells": None}, ("`cells` is None", "AnnData")),
        ({"filters": "kind:a"}, ("`filters` is 'kind:a'", "maps obs columns")),
        ({"max_cells": "5"}, ("`max_cells` is '5'", "whole number")),
        ({"max_cells": 2.5}, ("`max_cells` is 2.5", "whole number")),
        ({"max_cells": 0}, ("`max_cells` is 0", "at least 1")),
        ({"seed": "x"}, ("`seed` is 'x'", "whole number")),
        ({"runtime": "bfloat16"}, ("`runtime` is 'bfloat16'", "Runtime(")),
        ({"devices": "cpu"}, ("`devices` is 'cpu'", "jax.devices()")),
        ({"gene_column": 3}, ("`gene_column` is 3",)),
        ({"counts_layer": ["raw"]}, ("`counts_layer`",)),
    ],
)
def test_what_they_share(model, cells, function, wrong, words):
    given = {"model": model, "cells": cells}
    if function == "attend_cells":
        given["genes"] = [f"ENSG{i:011d}" for i in range(9)]
    if function == "validate_perturbations":
        given |= {"cells": toy_cells(6), "perturbation": "kind", "control": "a"}
    assert_told(getattr(gf, function), given | wrong, words)


@pytest.mark.parametrize(
    ("function", "wrong", "words"),
    [
        ("embed_cells", {"hidden_layer": "-1"}, ("`hidden_layer` is '-1'", "whole number")),
        ("embed_cells", {"hidden_layer": [0, "1"]}, ("`hidden_layer` is '1'", "whole number")),
        ("embed_cells", {"hidden_layer": True}, ("`hidden_layer` is True", "whole number")),
        ("embed_cells", {"hidden_layer": None}, ("`hidden_layer` is None", "whole number")),
        ("embed_cells", {"mode": 1}, ("`mode` is 1", "cell")),
        ("embed_cells", {"key_added": 3}, ("`key_added` is 3", "text")),
        ("perturb_cells", {"hidden_layer": "-1"}, ("`hidden_layer` is '-1'", "whole number")),
        ("perturb_cells", {"states": "kind"}, ("`states` is 'kind'", "CellStates(")),
        ("perturb_cells", {"states": {"goal": "a"}}, ("`states` is", "CellStates(")),
        ("perturb_cells", {"genes": 7}, ("`genes` is 7", "names of genes")),
        ("perturb_cells", {"genes": "CD74"}, ('gene "CD74" is not in the vocabulary',)),
        ("perturb_cells", {"expressing": "CD74"}, ('gene "CD74" is not in the vocabulary',)),
        ("perturb_cells", {"combinations": ["A", "B"]}, ("`combinations` holds 'A'", "list")),
        ("perturb_cells", {"edit": None, "ranks": "2"}, ("`ranks` is '2'", "whole number")),
        ("perturb_cells", {"edit": 1}, ("`edit` is 1",)),
        ("perturb_cells", {"edit": None}, ('no edit "None"', "use one of delete")),
        ("perturb_cells", {"combine": None}, ('"None"', "each")),
        ("perturb_cells", {"positions": None}, ('no positions "None"', "renumber")),
        ("perturb_cells", {"truncation": None}, ('no truncation "None"', "refill")),
        ("perturb_cells", {"gene_shifts": None}, ('no gene_shifts "None"', "means")),
        ("perturb_cells", {"quantile": "half"}, ("`quantile` is 'half'", "0.25")),
        ("attend_cells", {"genes": 7}, ("`genes` is 7",)),
        ("attend_cells", {"genes": "CD74"}, ("CD74", "vocabulary")),
        ("attend_cells", {"genes": "nowhere.txt"}, ("nowhere.txt does not exist",)),
        ("attend_cells", {"groupby": 2}, ("`groupby` is 2",)),
        ("attend_cells", {"pairs": "CD74"}, ('gene "CD74" is not in the vocabulary',)),
        ("predict_cells", {"model": "fold_0"}, ("`model` is 'fold_0'", "load_model")),
        ("predict_genes", {"model": "fold_0"}, ("`model` is 'fold_0'", "load_model")),
        ("finetune_cells", {"model": "m", "labels_key": "kind", "workdir": "w"}, ("`model`",)),
        ("finetune_cells", {"labels_key": ["kind"], "workdir": "w"}, ("`labels_key`",)),
        ("finetune_cells", {"labels_key": "kind", "workdir": None}, ("`workdir` is None",)),
        ("finetune_cells", {"labels_key": "kind", "workdir": "w", "config": "c"}, ("`config`",)),
    ],
)
def test_each_on_its_own(model, cells, function, wrong, words):
    given = {"model": model, "cells": cells}
    if function == "attend_cells":
        given["genes"] = [f"ENSG{i:011d}" for i in range(9)]
    assert_told(getattr(gf, function), given | wrong, words)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: gf.tokenize_cells("no.h5ad", m.vocabulary), ("no.h5ad does not exist",)),
        (lambda m: gf.tokenize_cells(None, m.vocabulary), ("`adata` is None", "AnnData", "path")),
        (lambda m: gf.tokenize_cells(FRAME, m.vocabulary), ("`adata` is a DataFrame",)),
        (lambda m: gf.tokenize_cells(toy_cells(3), "vocabulary"), ("`vocabulary`", "load")),
        (lambda m: gf.tokenize_cells(toy_cells(3), m), ("`vocabulary` is a PretrainedModel",)),
        (
            lambda m: gf.tokenize_cells(toy_cells(3), m.vocabulary, max_length="9"),
            ("`max_length` is '9'",),
        ),
        (lambda m: gf.load_model(None), ("`path` is None",)),
        (lambda m: gf.load_model(m), ("`path` is a PretrainedModel",)),
        (lambda m: gf.load_model("x", vocabulary=3), ("`vocabulary` is 3",)),
        (lambda m: gf.CellStore.open(None), ("`folder` is None",)),
        (lambda m: gf.GeneVocabulary.load(3), ("`folder` is 3",)),
        (lambda m: gf.pretrain_model(FRAME, "run", {}), ("`store` is a DataFrame",)),
        (lambda m: gf.pretrain_model("store", None, {}), ("`workdir` is None",)),
        (lambda m: gf.pretrain_model("store", "run", "config.py"), ("`config` is 'config.py'",)),
        (lambda m: gf.perturbation_statistics(FRAME, "aggregate"), ("`output` is None",)),
        (lambda m: gf.perturbation_statistics("out", ["vs_null"]), ("`mode` is a list",)),
        (lambda m: gf.Runtime(precision="bfloat"), ('did you mean "bfloat16"',)),
        (lambda m: gf.Runtime(precision="BFLOAT"), ('did you mean "bfloat16"',)),
        (lambda m: gf.CellStates(None, goal="a"), ("need an obs column",)),
    ],
)
def test_the_others(model, call, words):
    with pytest.raises(gf.InputError) as told:
        call(model)
    assert_words(str(told.value), words)


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        (np.arange(6) == 2, ("truth values", "flatnonzero")),
        ([True] * 6, ("truth values", "flatnonzero")),
        ([-1], ("cell -1 is not among these 6 cells",)),
        ([0, 6], ("cell 6 is not among these 6 cells",)),
        (2, ("`indices` is 2", "range(8)")),
        (slice(2), ("`indices` is a slice", "range(8)")),
        ([1.0], ("`indices` is a list",)),
        (["c1"], ("`indices` is a list",)),
    ],
)
def test_numbers_of_cells(model, cells, tmp_path, indices, words):
    store = make_store(tmp_path / "store", toy_cells(6), model.vocabulary)
    for each in (store, cells, select_cells(cells, max_cells=6)):
        assert_told(each.read, {"indices": indices}, words)
        assert each.read([]) == [] and len(each.read(range(2, 4))) == 2


def test_a_precision_may_be_named(model, cells):
    runtime = gf.Runtime(precision="bfloat16")
    assert runtime.precision.name == "bfloat16"
    assert gf.embed_cells(model, cells, runtime=runtime).n_obs == 6


def assert_told(function, given, words):
    with pytest.raises(gf.InputError) as told:
        function(**given)
    assert_words(str(told.value), words)


def assert_words(message, words):
    assert "\n" not in message
    for each in words:
        assert each in message, message
