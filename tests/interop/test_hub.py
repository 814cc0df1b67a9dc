"""Models put on the hub and fetched again, from a small hub on this machine."""

import dataclasses
import json

import huggingface_hub
import jax
import numpy as np
import pandas as pd
import pytest
from huggingface_hub import constants

import geneformer_jax as gf
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import init_params
from geneformer_jax.model.heads import HeadConfig, init_head
from geneformer_jax.model.pretrained import PretrainedModel, save_model
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.hub_server import ALLOWED, serve_hub
from tests.helpers.toy import toy_vocabulary

# The hub's client sends files in a way that the library it talks through gives up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
CONFIG = EncoderConfig(152, 1, 16, 2, 24, 12)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve_hub() as (address, state):
        monkeypatch.setenv("HF_TOKEN", ALLOWED)
        for name, value in {
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield state


@pytest.fixture
def run(tmp_path):
    """The workdir of a pretraining run, as far as a card reads it."""
    model = PretrainedModel(
        CONFIG, init_params(CONFIG, jax.random.key(0)), toy_vocabulary(), "", step=40
    )
    config = {
        "optimizer": {"learning_rate": 1e-3, "schedule": "linear", "weight_decay": 0.01},
        "data": {"cells_per_batch": 12},
        "runtime": {"precision": "float32"},
        "seed": 7,
    }
    provenance = {
        "command": "pretrain",
        "configuration": config,
        "inputs": [{"name": "blood"}],
        "counts": {"training_cells": 1200},
        "packages": {"jax": "0.10.2"},
    }
    save_model(model, tmp_path / "run", provenance)
    table = {"method": ["model", "gene frequency"], "loss": [4.25, 5.5], "masked_genes": 99}
    pd.DataFrame(table).to_csv(tmp_path / "run/held_out.csv", index=False)
    return tmp_path / "run"


def test_a_model_is_sent_and_fetched_with_its_vocabulary(hub, run):
    assert gf.push_to_hub(run, "hf://org/name", license="cc-by-4.0").endswith("/org/name")
    sent, fetched = gf.load_model(run), gf.load_model("org/name")
    jax.tree.map(np.testing.assert_array_equal, fetched.params, sent.params)
    assert fetched.vocabulary.hash == sent.vocabulary.hash
    card = hub.repositories["org/name"]["README.md"].decode()
    for words in ('license: "cc-by-4.0"', "for 40 updates on `blood`: 1,200 training cells",
                  "| model | 4.25 | 99 |", "| gene frequency | 5.5 | 99 |", "learning rate 0.001",
                  "10.1038/s41586-023-06139-9"):  # fmt: skip
        assert words in card
    assert not hub.private


def test_what_has_arrived_is_not_sent_again(hub, run, monkeypatch):
    """Interrupted before the commit, and given again; and once more when all is there."""
    whole = huggingface_hub.HfApi.upload_folder
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", _send_weights_and_stop)
    with pytest.raises(InputError, match="give the same command again"):
        gf.push_to_hub(run, "org/name")
    assert set(hub.repositories["org/name"]) == {".gitattributes"} and len(hub.sent) == 1
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", whole)
    for _ in range(2):
        gf.push_to_hub(run, "org/name")
        assert len(hub.sent) == 3 == len(set(hub.sent))
    assert gf.load_model("org/name").vocabulary is not None


def _send_weights_and_stop(api, repo_id, folder_path, **_):
    weights = folder_path / "model.safetensors"
    add = huggingface_hub.CommitOperationAdd("model.safetensors", weights)
    api.preupload_lfs_files(repo_id, [add])
    raise ConnectionError("the line went dead")


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        ("org/name", "wrong", "does not allow org/name to be written"),
        ("other/name", ALLOWED, "does not allow other/name to be written"),
        ("name", ALLOWED, '"name" is no name on the hub; give it as org/name'),
        ("org/na me", ALLOWED, "is no name on the hub"),
        ("org/taken", ALLOWED, "org/taken is there and holds other files (notes.txt)"),
        ("org/other", ALLOWED, "and nothing is overwritten; give another name"),
    ],
)
def test_names_that_are_taken_or_not_allowed(hub, run, monkeypatch, capsys, name, token, words):
    hub.repositories["org/taken"] = {"notes.txt": b"mine"}
    hub.repositories["org/other"] = {"model.safetensors": b"mine"}
    monkeypatch.setenv("HF_TOKEN", token)
    arguments = [f"--source={run}", f"--target=hf://{name}"]
    status, _, error = run_command("convert", arguments, monkeypatch, capsys)
    assert (status, words in error) == (1, True), error
    assert_one_line(error)
    assert hub.repositories["org/other"] == {"model.safetensors": b"mine"}


def test_a_classifier_says_what_it_was_measured_by(hub, tmp_path):
    head = HeadConfig("cell_classifier", ("B", "T"), 0.1)
    params = init_params(CONFIG, jax.random.key(0))
    del params["masked_gene_head"]
    params[head.kind] = init_head(CONFIG, head, jax.random.key(1))
    model = PretrainedModel(CONFIG, params, toy_vocabulary(), "", 3, head)
    fold = tmp_path / "run/networks/Geneformer/fold_0/model"
    save_model(model, fold, {"command": "finetune"} | PLAIN)
    results = {"method": ["Geneformer", "SVM, ranks"], "accuracy": [0.5, 0.6875]}
    pd.DataFrame(results).to_csv(tmp_path / "run/results.csv", index=False)
    (tmp_path / "run/provenance.json").write_text(json.dumps({"command": "finetune"}))
    gf.push_to_hub(fold, "org/types", private=True)
    card = hub.repositories["org/types"]["README.md"].decode()
    for words in ("It classifies cells: B, T.", "| SVM, ranks | 0.6875 |", "gf.predict_cells",
                  "No licence is stated"):  # fmt: skip
        assert words in card
    assert hub.private == {"org/types"}


PLAIN = {
    "inputs": [],
    "counts": {},
    "packages": {},
    "configuration": {
        "optimizer": {"learning_rate": 1e-3, "schedule": "linear", "weight_decay": 0.0},
        "data": {"cells_per_batch": 1},
        "runtime": {"precision": "float32"},
        "seed": 0,
    },
}


def test_a_model_that_nobody_could_use(hub, run):
    model = dataclasses.replace(gf.load_model(run), vocabulary=None)
    with pytest.raises(InputError, match="carries no vocabulary"):
        gf.push_to_hub(model, "org/name")
    assert not hub.repositories


def test_flags_of_the_hub_alone(run, monkeypatch, capsys):
    arguments = [f"--source={run}", "--target=hf", "--license=mit"]
    status, _, error = run_command("convert", arguments, monkeypatch, capsys)
    assert (status, "are for --target=hf://org/name" in error) == (1, True)


@pytest.mark.parametrize("wrong", [{"name": 3}, {"license": 4}, {"private": "yes"}])
def test_arguments_of_wrong_types_are_told(wrong):
    ((argument, _),) = wrong.items()
    with pytest.raises(InputError, match=f"`{argument}` is .*; give"):
        gf.push_to_hub("model", **{"name": "org/name"} | wrong)
