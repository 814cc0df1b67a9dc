"""Models that are rounded as they are read: from any source, with adapters; what is refused."""

import importlib.util
import json

import jax
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("qwix", reason='no qwix: pip install "geneformer_jax[quantize]"')

import geneformer_jax as gf
from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.resume.identity import identity_of
from geneformer_jax.interop import adapters, huggingface
from geneformer_jax.model.config import QUANTIZATIONS, LoraConfig
from geneformer_jax.model.encoder import encode
from geneformer_jax.model.heads import HeadConfig, init_head
from geneformer_jax.model.lora import init_lora
from geneformer_jax.model.pretrained import save_model, weights_hash
from geneformer_jax.model.quantization import count_weights, stored_bytes
from tests.helpers.bert_folders import equal_params, write_folder
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.rounded import model_in_floats
from tests.helpers.toy import toy_cells, toy_vocabulary

TOKENS = np.arange(2, 14, dtype=np.int32)[None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same model as transformers' folder, our checkpoint, and base of an adapter in nf4."""
    root = tmp_path_factory.mktemp("quantized")
    vocabulary = toy_vocabulary()
    vocabulary.save(root / "vocabulary")
    model = gf.load_model(write_folder(root / "hf"), root / "vocabulary")
    save_model(model, root / "checkpoint", {})
    base = gf.load_model(root / "checkpoint", quantize="nf4")
    lora = LoraConfig(rank=2, alpha=3.0, targets=("query", "attention_output", "up", "down"))
    factors = init_lora(base.config, lora, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 100))
    factors = jax.tree.map(lambda x: 0.4 * jax.random.normal(next(keys), x.shape), factors)
    head = HeadConfig("cell_classifier", ("a", "b"), 0.0)
    trained = {"lora": factors, head.kind: init_head(base.config, head, jax.random.key(2))}
    with_head = gf.PretrainedModel(
        base.config, trained, vocabulary, base.source, 5, head, base.quantization
    )
    adapters.save_adapter(trained, lora, with_head, weights_hash(base), root / "adapter", {})
    return root


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_every_source_gives_the_same_codes_and_the_hash_of_its_floats(folders, kind):
    one = gf.load_model(folders / "hf", quantize=kind)
    other = gf.load_model(folders / "checkpoint", quantize=kind)
    assert equal_params(one.params, other.params)
    whole = gf.load_model(folders / "hf")
    assert weights_hash(one) == weights_hash(other) == weights_hash(whole)
    assert f"{count_weights(whole.params):,} weights in {kind}" in repr(one)
    assert count_weights(one.params) == count_weights(whole.params)


def hidden(params, config):
    forward = jax.jit(encode, static_argnums=0)
    return np.asarray(forward(config, params, TOKENS, np.array([12])))


def test_an_adapter_stands_in_float_beside_its_rounded_base(folders, monkeypatch):
    model = gf.load_model(folders / "adapter", quantize="nf4")
    assert (model.head.labels, model.step) == (("a", "b"), 5)
    base = model_in_floats(gf.load_model(folders / "checkpoint", quantize="nf4"))
    monkeypatch.setattr(adapters, "weights_hash", lambda _: weights_hash(model))
    merged = adapters.apply_adapter(folders / "adapter", base)
    got = hidden(model.params, model.config)
    np.testing.assert_allclose(got, hidden(merged.params, model.config), rtol=0, atol=2e-5)
    assert np.abs(got - hidden(base.params, model.config)).max() > 0.05


def test_an_adapter_of_a_rounded_base_goes_onto_floats_and_says_so(folders, caplog):
    with caplog.at_level("INFO", "geneformer_jax"):
        model = gf.load_model(folders / "adapter")
    assert "was trained beside weights in nf4" in caplog.text
    assert model.quantization is None
    assert json.loads((folders / "adapter/adapter.json").read_text())["base"]["quantization"]


def test_results_of_other_roundings_are_other_results(folders):
    cells = gf.tokenize_cells(toy_cells(4), toy_vocabulary())
    models = [gf.load_model(folders / "checkpoint", quantize=kind) for kind in (None, "int8")]
    whole, rounded = (identity_of(model, cells) for model in models)
    assert rounded["quantize"] == "int8" and "quantize" not in whole
    assert whole["weights"] != rounded["weights"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("kind", '`quantize` is "int4"'),
        ("library", "geneformer_jax[quantize]"),
        ("second adapter", "no second one"),
        ("checkpoint", "float32 ones are needed"),
        ("transformers", "float32 ones are needed"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(folders, tmp_path, monkeypatch, case, words):
    model = gf.load_model(folders / "hf", quantize="nf4")
    if case == "library":
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    calls = {
        "kind": lambda: gf.load_model(folders / "hf", quantize="int4"),
        "library": lambda: gf.load_model(folders / "hf", quantize="int8"),
        "second adapter": lambda: gf.load_model(
            folders / "adapter", base=folders / "adapter", quantize="nf4"
        ),
        "checkpoint": lambda: save_model(model, tmp_path / "new", {}),
        "transformers": lambda: huggingface.write_model(model, tmp_path / "new", {}),
    }
    with pytest.raises(InputError) as raised:
        calls[case]()
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()


def test_convert_asks_for_the_base_of_an_adapter_trained_beside_codes(
    folders, tmp_path, monkeypatch, capsys
):
    arguments = [f"--source={folders / 'adapter'}", f"--target={tmp_path / 'merged'}"]
    status, _, error = run_command("convert", arguments, monkeypatch, capsys)
    assert status == 1 and "was trained beside weights in nf4" in error and "--base" in error
    assert_one_line(error)
    arguments.append(f"--base={folders / 'checkpoint'}")
    assert run_command("convert", arguments, monkeypatch, capsys)[0] == 0
    merged = gf.load_model(tmp_path / "merged")
    assert equal_params(merged.params, gf.load_model(folders / "adapter").params)


@pytest.mark.slow
@pytest.mark.reference_data
@pytest.mark.parametrize(("kind", "least"), [("int8", 0.999), ("nf4", 0.99)])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_real_cells_keep_their_embeddings(reference_dir, version, kind, least):
    """Mean-pooled hidden states of the original's cells, beside those of float32 weights."""
    cells = pd.read_parquet(reference_dir / f"tokens_{version}.parquet")["input_ids"].iloc[:24]
    lengths_B = np.minimum(cells.str.len().to_numpy(), 512)
    tokens_BT = np.zeros((len(cells), lengths_B.max()), np.int32)
    for row, (cell, length) in enumerate(zip(cells, lengths_B, strict=True)):
        tokens_BT[row, :length] = cell[:length]
    real_BT1 = (np.arange(tokens_BT.shape[1]) < lengths_B[:, None])[..., None]
    models = [
        gf.load_model(reference_dir / "models" / f"{version}_tiny", quantize=each)
        for each in (None, kind)
    ]
    forward = jax.jit(encode, static_argnums=0)
    one, other = (
        (np.asarray(forward(each.config, each.params, tokens_BT, lengths_B)) * real_BT1).sum(axis=1)
        for each in models
    )
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    assert ((one * other).sum(axis=1) / norms).min() >= least
    bytes_taken, floats = stored_bytes(models[1].params), stored_bytes(models[0].params)
    assert bytes_taken <= {"int8": 0.30, "nf4": 0.18}[kind] * floats
