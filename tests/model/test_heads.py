"""Classification heads: what they see, what dropout does, and models saved with them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import encode, init_params
from geneformer_jax.model.heads import HeadConfig, HeadTask, head_module, head_of_tasks, init_head
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.pretrained import (
    PretrainedModel,
    abstract_weights,
    load_model,
    save_model,
)
from tests.helpers.toy import toy_vocabulary

CONFIG = EncoderConfig(152, 1, 16, 2, 24, 12)
HEADS = {
    kind: HeadConfig(kind, ("a", "b", "c"), dropout=0.5)
    for kind in ("cell_classifier", "gene_classifier")
}


@functools.partial(jax.jit, static_argnums=(0, 3))
def classify(head, weights, hidden_BTD, precision, dropout_key=None):
    return head_module(CONFIG, head, weights, precision)(hidden_BTD, dropout_key=dropout_key)


def hidden_states() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_cell_is_classified_by_its_first_position(precision):
    head = HEADS["cell_classifier"]
    weights = init_head(CONFIG, head, jax.random.key(1))
    x = hidden_states()
    logits = classify(head, weights, x, precision_preset(precision))
    pooled = np.tanh(x[:, 0] @ weights["pooler"]["kernel"] + weights["pooler"]["bias"])
    expected = pooled @ weights["classifier"]["kernel"] + weights["classifier"]["bias"]
    assert logits.dtype == jnp.float32
    atol = {"float32": 1e-6, "bfloat16": 2e-3, "float16": 2e-4}[precision]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=atol)


def test_every_gene_is_classified_by_its_own_position():
    head = HEADS["gene_classifier"]
    weights = init_head(CONFIG, head, jax.random.key(1))
    x = hidden_states()
    logits = classify(head, weights, x, precision_preset("float32"))
    expected = x @ weights["classifier"]["kernel"] + weights["classifier"]["bias"]
    assert logits.shape == (2, 5, 3)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)


OPTIONS = {
    "mean": dataclasses.replace(HEADS["cell_classifier"], pooling="mean"),
    "attention": dataclasses.replace(HEADS["cell_classifier"], pooling="attention"),
    "mean, extra layer": dataclasses.replace(
        HEADS["cell_classifier"], pooling="mean", extra_layer=True
    ),
    "genes, extra layer": dataclasses.replace(HEADS["gene_classifier"], extra_layer=True),
}


@functools.partial(jax.jit, static_argnums=0)
def classify_padded(head, weights, hidden_BTD, lengths_B):
    return head_module(CONFIG, head, weights, precision_preset("float32"))(hidden_BTD, lengths_B)


@pytest.mark.parametrize("name", OPTIONS)
def test_pads_change_nothing(name):
    head = OPTIONS[name]
    weights = init_head(CONFIG, head, jax.random.key(1))
    x = hidden_states()
    lengths_B = jnp.array([3, 5])
    logits = np.asarray(classify_padded(head, weights, x, lengths_B))
    garbage = x.copy()
    garbage[0, 3:] = 1e3
    again = np.asarray(classify_padded(head, weights, garbage, lengths_B))
    real = (slice(None),) if logits.ndim == 2 else (jnp.arange(5) < lengths_B[:, None],)
    np.testing.assert_array_equal(again[real], logits[real])
    short = classify_padded(head, weights, x[:1, :3], jnp.array([3]))
    np.testing.assert_allclose(logits[:1, :3] if logits.ndim == 3 else logits[:1], short, atol=1e-6)
    empty = classify_padded(head, weights, x, jnp.array([0, 5]))
    assert np.isfinite(empty).all()


def test_means_and_attention_weigh_the_real_positions():
    x, n = hidden_states()[:1], 4

    def dense(layer, value):
        return value @ layer["kernel"] + layer["bias"]

    for pooling in ("mean", "attention"):
        head = OPTIONS[pooling]
        weights = jax.device_get(init_head(CONFIG, head, jax.random.key(1)))
        if pooling == "attention":
            weights["scores"] = {"kernel": 50 * weights["scores"]["kernel"]}
            scores = np.exp(x[0, :n] @ weights["scores"]["kernel"][:, 0])
            share = scores / scores.sum()
            assert share.max() > 2 * share.min()
        else:
            share = np.full(n, 1 / n)
        pooled = np.tanh(dense(weights["pooler"], share @ x[0, :n]))
        logits = classify_padded(head, weights, x, jnp.array([n]))
        np.testing.assert_allclose(logits[0], dense(weights["classifier"], pooled), atol=1e-5)


def test_the_extra_layer_is_one_more_block():
    head = OPTIONS["genes, extra layer"]
    weights = init_head(CONFIG, head, jax.random.key(1))
    params = jax.jit(functools.partial(init_params, CONFIG))(jax.random.key(0))
    tokens_BT, lengths_B = jnp.array([[5, 6, 7, 9, 0], [3, 4, 5, 6, 7]]), jnp.array([4, 5])
    two = dataclasses.replace(CONFIG, layers=2)
    extra = jax.tree.map(
        lambda low, high: jnp.stack([low[0], high]), params["blocks"], weights["extra_layer"]
    )
    hidden = jax.jit(functools.partial(encode, CONFIG))(params, tokens_BT, lengths_B)
    logits = classify_padded(head, weights, hidden, lengths_B)
    params = params | {"blocks": extra}
    deeper = jax.jit(functools.partial(encode, two))(params, tokens_BT, lengths_B)
    wanted = deeper @ weights["classifier"]["kernel"] + weights["classifier"]["bias"]
    real = np.arange(5) < np.asarray(lengths_B)[:, None]
    np.testing.assert_allclose(np.asarray(logits)[real], np.asarray(wanted)[real], atol=1e-5)


def test_several_tasks_stand_side_by_side():
    tasks = (HeadTask("type", ("a", "b")), HeadTask("age", ("age",), 2.0, regression=True))
    head = head_of_tasks("cell_classifier", tasks, 0.1, pooling="mean")
    assert head.labels == ("a", "b", "age")
    assert not head.as_original
    assert HeadConfig(**json.loads(json.dumps(dataclasses.asdict(head)))) == head
    single = head_of_tasks("cell_classifier", tasks[:1], 0.1)
    assert single.as_original
    assert single.outputs[0].labels == ("a", "b")


@pytest.mark.parametrize("kind", HEADS)
def test_dropout_keeps_the_mean_and_comes_only_with_a_key(kind):
    head = HEADS[kind]
    weights = init_head(CONFIG, head, jax.random.key(1))
    precision = precision_preset("float32")
    many = np.repeat(hidden_states()[:1], 4000, axis=0)
    plain = np.asarray(classify(head, weights, many, precision))
    dropped = np.asarray(classify(head, weights, many, precision, jax.random.key(2)))
    spread = dropped.std(axis=0).max()
    assert spread > 1e-3
    bound = 5 * spread / np.sqrt(len(many))
    np.testing.assert_allclose(dropped.mean(axis=0), plain[0], rtol=0, atol=bound)


@pytest.mark.parametrize("kind", HEADS)
def test_a_classifier_returns_from_its_checkpoint_and_still_encodes(tmp_path, kind):
    head = HEADS[kind]
    params = jax.jit(functools.partial(init_params, CONFIG))(jax.random.key(0))
    with_masked_genes = dict(params)
    del params["masked_gene_head"]
    params[kind] = init_head(CONFIG, head, jax.random.key(1))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    abstract = abstract_weights(CONFIG, head)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract)
    model = PretrainedModel(CONFIG, params, toy_vocabulary(), "here", step=12, head=head)
    saved = save_model(model, tmp_path / "checkpoint", {"command": "test"})
    # Under another name, too: the step is in it.
    loaded = load_model(saved.rename(tmp_path / "best"))
    assert (loaded.head, loaded.step, loaded.config) == (head, 12, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    run = jax.jit(functools.partial(encode, CONFIG))
    tokens_BT, lengths_B = jnp.array([[5, 6, 7, 0]]), jnp.array([3])
    np.testing.assert_array_equal(
        run(loaded.params, tokens_BT, lengths_B), run(with_masked_genes, tokens_BT, lengths_B)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cell_clasifier", ("a",), 0.1), 'did you mean "cell_classifier"'),
        (("cell_classifier", (), 0.1), "without labels"),
        (("cell_classifier", ("a",), 1.0), "must be in"),
        (("cell_classifier", ("a",), 0.1, "maen"), 'did you mean "mean"'),
        (("cell_classifier", ("a",), 0.1, "mean", False, (HeadTask("t", ("b",)),)), "not those"),
    ],
)
def test_impossible_heads_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        HeadConfig(*arguments)


def test_a_damaged_checkpoint_is_told_in_one_short_line(tmp_path):
    head = HEADS["gene_classifier"]
    params = {"embeddings": {"word": {"embedding": jnp.zeros((3, 2))}}}
    model = PretrainedModel(CONFIG, params, toy_vocabulary(), "here", step=0, head=head)
    save_model(model, tmp_path / "checkpoint", {"command": "test"})
    with pytest.raises(InputError, match="cannot be read") as raised:
        load_model(tmp_path / "checkpoint")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
