"""Models that transformers saved, in and out: every tensor, every setting, every refusal."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import geneformer_jax as gf
from geneformer_jax.common.errors import InputError
from geneformer_jax.interop import huggingface
from geneformer_jax.model import pretrained
from tests.helpers.bert_folders import (
    CLASSES,
    WORD,
    D,
    F,
    L,
    T,
    V,
    equal_params,
    read,
    refusal,
    settings,
    tensors,
    write_folder,
)
from tests.helpers.toy import toy_cells, toy_vocabulary

ARCHITECTURES = ("BertForMaskedLM", *CLASSES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_return_byte_for_byte_with_their_settings(tmp_path, architecture):
    source = write_folder(tmp_path / "hf", architecture=architecture)
    counts = huggingface.import_model(source, tmp_path / "checkpoint", toy_vocabulary())
    exported = huggingface.export_model(tmp_path / "checkpoint", tmp_path / "back")
    assert counts["architecture"] == exported["architecture"] == architecture
    before, after = tensors(architecture), load_file(tmp_path / "back" / "model.safetensors")
    assert set(after) == set(before)
    assert counts["tensors"] == exported["tensors"] == len(before)
    assert counts["weights"] == sum(value.size for value in before.values())
    for name, value in before.items():
        assert after[name].dtype == np.float32
        assert after[name].shape == value.shape
        assert after[name].tobytes() == value.tobytes(), name
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    wanted = settings(architecture)
    assert {name: written[name] for name in wanted} == wanted
    for folder in ("checkpoint", "back"):
        assert (tmp_path / folder / "provenance.json").is_file()


def without_head(folder, pooler=True):
    """A folder as BertModel.save_pretrained writes it."""
    whole = {name: each for name, each in tensors().items() if name.startswith("bert.")}
    own = {name.removeprefix("bert."): each for name, each in whole.items()}
    if pooler:
        own |= {"pooler.dense.weight": np.ones((D, D), np.float32), "pooler.dense.bias": np.ones(D)}
    write_folder(folder, own, architecture="BertModel")
    return own


@pytest.mark.parametrize("pooler", [True, False])
def test_an_encoder_without_a_head_embeds_and_comes_back(tmp_path, pooler):
    own = without_head(tmp_path / "hf", pooler)
    whole, bare = read(write_folder(tmp_path / "whole")), read(tmp_path / "hf")
    assert bare.is_bare and not whole.is_bare and "no head" in repr(bare)
    params = {part: whole.params[part] for part in ("embeddings", "blocks")}
    assert equal_params(bare.params, params)
    huggingface.import_model(tmp_path / "hf", tmp_path / "checkpoint", toy_vocabulary())
    kept = gf.load_model(tmp_path / "checkpoint")
    assert kept.is_bare and equal_params(kept.params, params)
    counts = huggingface.export_model(tmp_path / "checkpoint", tmp_path / "back")
    assert counts["architecture"] == "BertModel"
    written = load_file(tmp_path / "back" / "model.safetensors")
    assert set(written) == {name for name in own if not name.startswith("pooler")}
    for name, value in written.items():
        np.testing.assert_array_equal(value, own[name])
    cells = gf.tokenize_cells(toy_cells(3), kept.vocabulary, max_length=T)
    with_head = dataclasses.replace(whole, vocabulary=kept.vocabulary)
    np.testing.assert_array_equal(
        gf.embed_cells(kept, cells).obsm["X_geneformer"],
        gf.embed_cells(with_head, cells).obsm["X_geneformer"],
    )
    with pytest.raises(InputError, match="no classification head"):
        gf.predict_cells(kept, cells)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "BertModel"])
def test_names_of_wrapped_models_are_read(tmp_path, prefix, architecture):
    if architecture == "BertModel":
        own = without_head(tmp_path / "plain")
    else:
        own = tensors(architecture)
        write_folder(tmp_path / "plain", architecture=architecture)
    wrapped = {prefix + name: value for name, value in own.items()}
    write_folder(tmp_path / "hf", wrapped, architecture=architecture)
    assert equal_params(read(tmp_path / "hf").params, read(tmp_path / "plain").params)


def test_adapters_of_peft_and_few_bits_are_told_in_plain_words(tmp_path):
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="merge_and_unload"):
        gf.load_model(tmp_path / "peft")
    bits = {"load_in_8bit": True, "quant_method": "bitsandbytes"}
    folder = write_folder(tmp_path / "hf", quantization_config=bits)
    assert "in floats" in refusal(folder)


def test_a_name_with_and_without_a_wrapper_is_refused(tmp_path):
    values = tensors() | {f"module.{WORD}": tensors()[WORD]}
    assert "module." in refusal(write_folder(tmp_path / "hf", values))


def test_weights_stand_where_their_names_say(tmp_path):
    params = read(write_folder(tmp_path / "hf")).params
    given = tensors()
    for i in range(L):
        layer = f"bert.encoder.layer.{i}"
        kernels = {
            "query": f"{layer}.attention.self.query",
            "key": f"{layer}.attention.self.key",
            "value": f"{layer}.attention.self.value",
            "attention_output": f"{layer}.attention.output.dense",
            "up": f"{layer}.intermediate.dense",
            "down": f"{layer}.output.dense",
        }
        x = np.random.default_rng(i).normal(size=D).astype(np.float32)
        for ours, name in kernels.items():
            kernel = np.asarray(params["blocks"][ours]["kernel"])[i]
            given_matrix = given[f"{name}.weight"]
            inputs = np.resize(x, given_matrix.shape[1])
            outputs = inputs @ kernel.reshape(given_matrix.shape[::-1])
            np.testing.assert_allclose(outputs, given_matrix @ inputs, atol=1e-6)
            bias = np.asarray(params["blocks"][ours]["bias"])[i]
            np.testing.assert_array_equal(bias.ravel(), given[f"{name}.bias"])
        assert params["blocks"]["up"]["kernel"].shape == (L, D, F)
        for ours, name in (
            ("attention_norm", "attention.output.LayerNorm"),
            ("output_norm", "output.LayerNorm"),
        ):
            norm = params["blocks"][ours]
            np.testing.assert_array_equal(norm["scale"][i], given[f"{layer}.{name}.weight"])
            np.testing.assert_array_equal(norm["bias"][i], given[f"{layer}.{name}.bias"])


def test_a_classifier_keeps_its_labels_and_its_dropout(tmp_path):
    source = write_folder(
        tmp_path / "hf", architecture="BertForSequenceClassification", classifier_dropout=0.3
    )
    huggingface.import_model(source, tmp_path / "checkpoint", toy_vocabulary())
    model = pretrained.load_model(tmp_path / "checkpoint")
    assert model.head.kind == "cell_classifier"
    assert model.head.labels == ("healthy", "dilated", "hypertrophic")
    assert model.head.dropout == 0.3
    genes = read(write_folder(tmp_path / "genes", architecture="BertForTokenClassification"))
    assert genes.head.labels == ("LABEL_0", "LABEL_1")
    assert genes.head.dropout == 0.02


def test_old_names_spare_copies_and_unused_tensors_change_nothing(tmp_path):
    plain = read(write_folder(tmp_path / "plain"))
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in tensors().items()
    }
    old["bert.embeddings.position_ids"] = np.arange(T)[None]
    old["bert.pooler.dense.weight"] = np.ones((D, D), np.float32)
    old["bert.pooler.dense.bias"] = np.ones(D, np.float32)
    old["cls.predictions.decoder.weight"] = old[WORD].copy()
    old["cls.predictions.decoder.bias"] = old["cls.predictions.bias"].copy()
    imported = huggingface.read_model(write_folder(tmp_path / "old", old))
    assert equal_params(imported.model.params, plain.params)
    assert imported.ignored == [
        "bert.embeddings.position_ids",
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
    ]


def test_a_decoder_alone_is_the_embedding(tmp_path):
    weights = tensors()
    weights["cls.predictions.decoder.weight"] = weights.pop(WORD)
    weights["cls.predictions.decoder.bias"] = weights.pop("cls.predictions.bias")
    plain = read(write_folder(tmp_path / "plain"))
    assert equal_params(read(write_folder(tmp_path / "hf", weights)).params, plain.params)


def test_an_untied_decoder_is_refused(tmp_path):
    weights = tensors() | {"cls.predictions.decoder.weight": tensors(seed=1)[WORD]}
    assert "is not tied" in refusal(write_folder(tmp_path / "hf", weights))


def test_all_misfits_are_reported_together(tmp_path):
    weights = tensors()
    del weights["bert.encoder.layer.1.output.dense.bias"], weights["cls.predictions.bias"]
    weights["bert.encoder.layer.2.output.dense.bias"] = np.zeros(D, np.float32)
    weights["bert.embeddings.LayerNorm.bias"] = np.zeros(D + 1, np.float32)
    weights["bert.embeddings.LayerNorm.weight"] = np.zeros(D, np.int32)
    message = refusal(write_folder(tmp_path / "hf", weights))
    for words in (
        "2 missing (bert.encoder.layer.1.output.dense.bias, cls.predictions.bias)",
        "1 unexpected (bert.encoder.layer.2.output.dense.bias)",
        "2 wrong (",
        f"bert.embeddings.LayerNorm.bias is [{D + 1}], not [{D}]",
        "bert.embeddings.LayerNorm.weight holds I32, not floats",
    ):
        assert words in message


def test_the_head_of_another_architecture_is_unexpected(tmp_path):
    weights = tensors("BertForTokenClassification") | tensors()
    message = refusal(
        write_folder(tmp_path / "hf", weights, architecture="BertForTokenClassification")
    )
    assert "5 unexpected (cls.predictions.bias" in message
    message = refusal(write_folder(tmp_path / "bare", tensors("BertForTokenClassification")))
    assert "5 missing (cls.predictions." in message
    assert "2 unexpected (classifier.bias, classifier.weight)" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, 'hidden_act "gelu", but only "relu"'),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, 'is_decoder "True"'),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"model_type": "roberta"}, 'model_type "roberta"'),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {"load_in_8bit": True}}, "8 or 4 bits"),
        ({"architectures": ["BertForPreTraining"]}, "BertForMaskedLM"),
        ({"architectures": None}, "architectures None"),
        ({"hidden_size": "16"}, "hidden_size '16'"),
        ({"num_hidden_layers": True}, "num_hidden_layers True"),
        ({"hidden_size": 15}, "not divisible"),
        ({"num_hidden_layers": 10**12}, "layers, but the weights are only"),
        ({"hidden_dropout_prob": 1.5}, "must be in [0, 1)"),
        ({"pad_token_id": 10**19}, "must be one of the"),
        ({"pad_token_id": -1}, "must be one of the"),
        ({"layer_norm_eps": -1.0}, "must be in [0, 1)"),
        ({"vocab_size": V + 1}, f"is [{V}, {D}], not [{V + 1}, {D}]"),
    ],
)
def test_settings_that_are_not_implemented_are_refused(tmp_path, changes, words):
    assert words in refusal(write_folder(tmp_path / "hf", **changes))


def test_an_absent_activation_is_berts_and_refused(tmp_path):
    folder = write_folder(tmp_path / "hf")
    content = settings()
    del content["hidden_act"]
    (folder / "config.json").write_text(json.dumps(content))
    assert '"gelu"' in refusal(folder)


@pytest.mark.parametrize("names", [{"0": "a", "2": "b"}, {}, ["a", "b"], {"x": "a"}])
def test_classes_must_be_numbered(tmp_path, names):
    folder = write_folder(
        tmp_path / "hf", architecture="BertForSequenceClassification", id2label=names
    )
    assert "must number the classes" in refusal(folder)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    weights = tensors()
    weights[WORD][3, 3] = np.nan
    assert "NaN or infinite" in refusal(write_folder(tmp_path / "hf", weights))


def test_other_positions_than_0_1_2_are_refused(tmp_path):
    weights = tensors() | {"bert.embeddings.position_ids": np.arange(T)[None] + 1}
    assert "position_ids" in refusal(write_folder(tmp_path / "hf", weights))


@pytest.mark.parity
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_loads_what_is_written(tmp_path, torch, architecture):
    import transformers

    source = write_folder(tmp_path / "hf", architecture=architecture)
    huggingface.import_model(source, tmp_path / "checkpoint", toy_vocabulary())
    huggingface.export_model(tmp_path / "checkpoint", tmp_path / "back")
    model, loading = getattr(transformers, architecture).from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not loading[problem], problem
    state = model.state_dict()
    for name, value in tensors(architecture).items():
        np.testing.assert_array_equal(state[name].numpy(), value)
    assert model.config.hidden_act == "relu"


def test_an_imported_model_carries_its_vocabulary_both_ways(tmp_path):
    vocabulary = toy_vocabulary()
    source = write_folder(tmp_path / "hf")
    assert gf.load_model(source).vocabulary is None
    assert gf.load_model(source, vocabulary).vocabulary.hash == vocabulary.hash
    huggingface.import_model(source, tmp_path / "checkpoint", vocabulary)
    assert gf.load_model(tmp_path / "checkpoint").vocabulary.hash == vocabulary.hash
    huggingface.export_model(tmp_path / "checkpoint", tmp_path / "back")
    assert gf.load_model(str(tmp_path / "back")).vocabulary.hash == vocabulary.hash
    huggingface.import_model(tmp_path / "back", tmp_path / "again")
    assert gf.load_model(tmp_path / "again").vocabulary.hash == vocabulary.hash


def test_another_vocabulary_is_refused(tmp_path):
    source = write_folder(tmp_path / "hf")
    larger = toy_vocabulary(("<pad>", "<mask>", "<cls>", "<eos>"))
    with pytest.raises(InputError, match="has 152 tokens, but the vocabulary has 154"):
        huggingface.import_model(source, tmp_path / "checkpoint", larger)
    with pytest.raises(InputError, match="carries no vocabulary"):
        huggingface.import_model(source, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
    huggingface.import_model(source, tmp_path / "checkpoint", toy_vocabulary())
    other = dataclasses.replace(toy_vocabulary(), species="mouse")
    with pytest.raises(InputError, match="carries vocabulary"):
        gf.load_model(tmp_path / "checkpoint", other)


def test_released_models_are_recognised_by_their_hash(tmp_path, monkeypatch):
    import hashlib

    source = write_folder(tmp_path / "hf")
    content = (source / "model.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()

    def official(name: str, table: dict) -> str:
        monkeypatch.setattr(huggingface, "OFFICIAL", table)
        huggingface.import_model(source, tmp_path / name, toy_vocabulary())
        provenance = json.loads((tmp_path / name / "provenance.json").read_text())
        return provenance["counts"]["official"]

    assert official("other", huggingface.OFFICIAL) == "none"
    assert official("same", {len(content): ("V1-10M", digest)}) == "V1-10M"
    changed = official("changed", {len(content): ("V1-10M", "0" * 64)})
    assert changed.startswith("none") and "V1-10M" in changed


def test_nothing_is_overwritten(tmp_path):
    source = write_folder(tmp_path / "hf")
    huggingface.import_model(source, tmp_path / "checkpoint", toy_vocabulary())
    with pytest.raises(InputError, match="already holds"):
        huggingface.import_model(source, tmp_path / "checkpoint", toy_vocabulary())
    with pytest.raises(InputError, match="already holds"):
        huggingface.export_model(tmp_path / "checkpoint", source)
