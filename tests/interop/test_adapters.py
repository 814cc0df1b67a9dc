"""Adapters of PEFT: read and written, each way with PEFT's own logits."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import geneformer_jax as gf
from geneformer_jax.common.errors import InputError
from geneformer_jax.interop import adapters
from geneformer_jax.interop.huggingface import read_model
from geneformer_jax.interop.model_folders import SHIPPED
from geneformer_jax.model.config import LoraConfig
from geneformer_jax.model.encoder import encode
from geneformer_jax.model.heads import HeadConfig, head_module, init_head
from geneformer_jax.model.lora import init_lora
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.pretrained import weights_hash
from tests.helpers.torch_bert import SHAPES, random_bert, random_cells
from tests.helpers.toy import toy_vocabulary

# PEFT asks transformers in a way that it gives up.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
SHAPE = SHAPES["V1"]
CELLS, GENES = "BertForSequenceClassification", "BertForTokenClassification"
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def ours(model, cells):
    """Logits of a classifier, or the last hidden states where there is no classifier."""
    hidden = encode(model.config, model.params, cells.batch.tokens_BT, cells.batch.lengths_B)
    if model.head is None:
        return np.asarray(hidden)
    weights = model.params[model.head.kind]
    module = head_module(model.config, model.head, weights, precision_preset("float32"))
    return np.asarray(module(hidden, cells.batch.lengths_B))


def theirs(torch, bert, cells):
    with torch.no_grad():
        tokens = torch.from_numpy(cells.batch.tokens_BT).long()
        made = bert(input_ids=tokens, attention_mask=torch.from_numpy(cells.real_BT).long())
    return (made.logits if hasattr(made, "logits") else made.last_hidden_state).numpy()


def assert_same(torch, model, bert, cells):
    got, wanted = ours(model, cells), theirs(torch, bert.eval(), cells)
    if got.ndim == 3:
        got, wanted = got[cells.real_BT], wanted[cells.real_BT]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


@pytest.fixture
def cells():
    return random_cells(SHAPE, np.random.default_rng(0))


@pytest.fixture(scope="module")
def save_peft(torch):
    """Saves a base and an adapter with random factors; returns PEFT's model."""
    peft = pytest.importorskip("peft")

    def save(folder, architecture, base_architecture="BertForMaskedLM", **options):
        random_bert(torch, SHAPE, base_architecture, "sdpa", seed=1).save_pretrained(
            folder / "base"
        )
        bert = random_bert(torch, SHAPE, architecture, "sdpa", seed=1, num_labels=3)
        base = {"r": 3, "lora_alpha": 5, "target_modules": ["query", "value"]}
        model = peft.get_peft_model(bert, peft.LoraConfig(**base | options))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
        model.save_pretrained(folder / "adapter")
        return model

    return save


TASKS = {CELLS: "SEQ_CLS", GENES: "TOKEN_CLS", "BertModel": None}
SAVED = {CELLS: ["classifier", "pooler"], GENES: ["classifier"], "BertModel": None}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        (CELLS, {}),
        (GENES, {"use_rslora": True}),
        ("BertModel", {"target_modules": ["query", "key", "dense"], "layers_to_transform": [1]}),
        (
            CELLS,
            {"rank_pattern": {"layer.0.attention.self.query": 2}, "alpha_pattern": {"value": 9}},
        ),
        (GENES, {"target_modules": ["word_embeddings", "query"][1:], "lora_dropout": 0.5}),
    ],
)
def test_read_as_peft_computes(torch, save_peft, tmp_path, cells, architecture, options):
    whole = {"task_type": TASKS[architecture], "modules_to_save": SAVED[architecture]}
    bert = save_peft(tmp_path, architecture, **whole | options)
    base = tmp_path / "base"
    model = gf.load_model(tmp_path / "adapter", base=base)
    assert_same(torch, model, bert, cells)
    assert np.abs(ours(model, cells) - ours(dataclasses.replace(
        model, params={**model.params, "blocks": read_model(base).model.params["blocks"]}
    ), cells)).max() > 1e-2  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize(("kind", "architecture"), [("cell", CELLS), ("gene", GENES)])
def test_written_so_that_peft_computes_the_same(torch, tmp_path, cells, kind, architecture):
    peft = pytest.importorskip("peft")
    random_bert(torch, SHAPE, "BertForMaskedLM", "sdpa", seed=1).save_pretrained(tmp_path / "base")
    model = save_own(tmp_path, kind)
    bert = type(random_bert(torch, SHAPE, architecture, "sdpa", seed=1)).from_pretrained(
        tmp_path / "base", num_labels=3
    )
    bert = peft.PeftModel.from_pretrained(bert, tmp_path / "adapter")
    assert_same(torch, model, bert, cells)


def save_own(folder, kind, **options):
    """Saves an adapter with random factors beside `base`; returns the model with it."""
    base = gf.load_model(folder / "base")
    base = dataclasses.replace(base, vocabulary=toy_vocabulary(), source=str(folder / "base"))
    lora = LoraConfig(rank=2, alpha=3.0, targets=("query", "attention_output", "up", "down"))
    factors = init_lora(base.config, lora, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 100))
    factors = jax.tree.map(lambda x: 0.3 * jax.random.normal(next(keys), x.shape), factors)
    head = HeadConfig(f"{kind}_classifier", ("a", "b", "c"), 0.1, **options)
    trained = {"lora": factors, head.kind: init_head(base.config, head, jax.random.key(2))}
    model = dataclasses.replace(base, head=head, step=7)
    adapters.save_adapter(trained, lora, model, weights_hash(base), folder / "adapter", {})
    return gf.load_model(folder / "adapter")


@pytest.fixture
def own(tmp_path):
    from tests.helpers.bert_folders import write_folder

    write_folder(tmp_path / "base")
    return tmp_path


def test_a_model_that_comes_with_the_package_is_named_as_base(own, monkeypatch):
    model = save_own(own, "cell", pooling="mean")
    monkeypatch.setitem(SHIPPED, "demo-blood", (own / "base").rename(own / "moved"))
    again = gf.load_model(own / "adapter", base="demo-blood")
    jax.tree.map(np.testing.assert_array_equal, model.params, again.params)


def test_a_head_that_bert_has_no_class_for(own):
    model = save_own(own, "cell", pooling="mean")
    assert (model.head.pooling, model.step) == ("mean", 7)
    assert not (own / "adapter/adapter_config.json").exists()
    again = gf.load_model(own / "adapter", base=shutil.copytree(own / "base", own / "moved"))
    jax.tree.map(np.testing.assert_array_equal, model.params, again.params)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base", None),
        ("base", {"source": 3, "weights": "a"}),
        ("head", {"kind": "cell_classifier", "labels": "abc", "dropout": 0.1}),
        ("head", {"kind": "cell_classifier", "labels": ["a"], "dropout": "0.1"}),
        ("head", ["cell_classifier"]),
        ("lora", {"rank": 2}),
        ("lora", {"rank": 2.5, "alpha": 1.0, "targets": ["query"]}),
        ("step", "seven"),
    ],
)
def test_an_adapter_that_says_nothing_of_use_is_refused(own, name, value):
    save_own(own, "cell")
    path = own / "adapter/adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(InputError, match=r"adapter.json is damaged \(.*; restore it"):
        gf.load_model(own / "adapter")


def test_adapters_that_were_written_before_are_read(own):
    model = save_own(own, "cell")
    tensors = load_file(own / "adapter/adapter_model.safetensors")
    base = gf.load_model(own / "base").config
    flat = {}
    for target, name in {"query": "attention.self.query", "attention_output":
                         "attention.output.dense", "up": "intermediate.dense",
                         "down": "output.dense"}.items():  # fmt: skip
        for part, end in {"into": "lora_A", "out": "lora_B"}.items():
            layer = "base_model.model.bert.encoder.layer.{}.{}.{}.weight"
            stacked = [tensors[layer.format(i, name, end)].T for i in range(base.layers)]
            flat[f"lora/{target}/{part}/kernel"] = np.stack(stacked)
    for layer, name in {"pooler": "bert.pooler.dense", "classifier": "classifier"}.items():
        for part, end in {"kernel": "weight", "bias": "bias"}.items():
            flat[f"cell_classifier/{layer}/{part}"] = tensors[f"base_model.model.{name}.{end}"].T
    np.savez(own / "adapter/adapter.npz", **flat)
    (own / "adapter/adapter_model.safetensors").unlink()
    before = gf.load_model(own / "adapter")
    jax.tree.map(np.testing.assert_array_equal, model.params, before.params)


def change(folder, **settings):
    path = folder / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.fixture
def foreign(own):
    """As PEFT leaves them: without what says of which base they are."""
    save_own(own, "cell")
    (own / "adapter/adapter.json").unlink()
    return own


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 0}, "r 0 for bert.encoder.layer.0"),
        ({"r": 4}, "have ranks 2 and 2, but adapter_config.json says 4"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"use_dora": True}, "use_dora True, which is not read; merge it with PEFT"),
        ({"bias": "all"}, "bias 'all'"),
        ({"peft_type": "IA3"}, "of kind IA3, but LORA is read"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base itself"),
        ({"task_type": "CAUSAL_LM"}, "holds a classifier, but its task_type is CAUSAL_LM"),
        ({"base_model_name_or_path": None}, "does not say what it goes on; name `base`"),
        ({"base_model_name_or_path": "/nowhere"}, "goes on top of /nowhere, which is not there"),
        ({"base_model_name_or_path": 3}, "has base_model_name_or_path 3; get it anew"),
        ({"rank_pattern": "query"}, "has rank_pattern 'query'; get it anew"),
        ({"target_modules": ["q_proj"]}, "but adapter_config.json has target_modules ['q_proj']"),
        ({"target_modules": "decoder.*"}, "factors of bert.encoder.layer.0"),
        ({"target_modules": "(query"}, "which is no regular expression"),
        ({"target_modules": 3}, "has target_modules 3; get it anew"),
    ],
)
def test_what_is_not_read_is_told_in_one_line(foreign, settings, words):
    change(foreign, **settings)
    with pytest.raises(InputError) as error:
        gf.load_model(foreign / "adapter")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(f"{QUERY}.lora_B.weight"), "has not both factors of bert.encoder.layer.0"),
        (lambda t: t.update({f"{QUERY}.lora_magnitude_vector": np.ones(4, "f")}), "no factor"),
        (lambda t: t.update({f"{QUERY}.lora_A.weight": np.ones((2, 3), "f")}), "is [16, 3], not"),
        (lambda t: t.update({"base_model.model.bert.none.weight": np.ones(2, "f")}), "not there"),
        (lambda t: t[f"{QUERY}.lora_A.weight"].fill(np.nan), "holds NaN"),
        (lambda t: [t.pop(n) for n in list(t) if "lora" in n], "it adapts nothing"),
        (lambda t: [t.pop(n) for n in list(t) if "pooler" in n], "holds no pooler"),
    ],
)
def test_weights_that_do_not_fit(foreign, edit, words):
    path = foreign / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    with pytest.raises(InputError) as error:
        gf.load_model(foreign / "adapter")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_without_its_weights(foreign):
    (foreign / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no adapter_model.safetensors; save"):
        gf.load_model(foreign / "adapter")


def test_the_pooler_is_taken_from_where_it_is_given(foreign):
    """An adapter that lacks it, on a base that has it: a classifier, or its files."""
    path = foreign / "adapter/adapter_model.safetensors"
    whole = gf.load_model(foreign / "adapter")
    tensors = load_file(path)
    pooler = {n: tensors.pop(n) for n in list(tensors) if "pooler" in n}
    save_file(tensors, path)
    base = foreign / "base/model.safetensors"
    plain = {name.removeprefix("base_model.model."): each for name, each in pooler.items()}
    save_file(load_file(base) | plain, base)
    found = gf.load_model(foreign / "adapter").params
    jax.tree.map(np.testing.assert_array_equal, found, whole.params)
