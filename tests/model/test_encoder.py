"""The encoder against the original's outputs, and what must not change when padding does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import PRESETS, EncoderConfig, preset
from geneformer_jax.model.encoder import (
    abstract_params,
    encode,
    encode_all_layers,
    init_params,
    masked_gene_logits,
)
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.runtime import Runtime
from tests.helpers.bert_weights import bert_weights

TINY = EncoderConfig(
    vocabulary_size=60,
    layers=3,
    width=32,
    heads=4,
    feed_forward=48,
    positions=24,
    dropout=0.1,
    attention_dropout=0.1,
)


forward = jax.jit(functools.partial(encode, TINY), static_argnames=("layers", "runtime"))


@pytest.fixture(scope="module")
def params():
    return init_params(TINY, jax.random.key(0))


def tiny_batch(T: int = 16) -> tuple[jax.Array, jax.Array]:
    lengths_B = jnp.array([T, 5, 1, 9])
    tokens_BT = jax.random.randint(jax.random.key(1), (4, T), 2, 60)
    return jnp.where(jnp.arange(T) < lengths_B[:, None], tokens_BT, 0), lengths_B


PUBLISHED_PARAMETERS = {
    "v1_10m": 10_288_722,
    "v1_40m": 39_591_250,
    "v2_38m": 37_997_363,
    "v2_151m": 151_313_459,
    "v2_104m": 104_386_867,
    "v2_316m": 316_354_867,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_weights(name):
    config = preset(name)
    weights = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
    assert weights == config.parameters == PUBLISHED_PARAMETERS[name]
    assert config.head_size == 64


def test_initial_weights_are_berts(params):
    embedding_VD = np.asarray(params["embeddings"]["word"]["embedding"])
    assert not embedding_VD[TINY.pad_token].any()
    assert embedding_VD[1:].std() == pytest.approx(0.02, rel=0.05)
    kernel = np.asarray(params["blocks"]["up"]["kernel"])
    assert kernel.std() == pytest.approx(0.02, rel=0.05)
    assert not np.allclose(kernel[0], kernel[1]), "layers must not start equal"
    assert not np.asarray(params["blocks"]["up"]["bias"]).any()
    assert (np.asarray(params["blocks"]["output_norm"]["scale"]) == 1).all()


def test_real_outputs_do_not_change_with_what_stands_in_the_padding(params):
    tokens_BT, lengths_B = tiny_batch()
    padding_BT = jnp.arange(16) >= lengths_B[:, None]
    garbage_BT = jnp.where(padding_BT, 37, tokens_BT)
    longer_BT = jnp.pad(tokens_BT, ((0, 0), (0, 8)))
    expected = np.asarray(forward(params, tokens_BT, lengths_B))
    got = np.asarray(forward(params, garbage_BT, lengths_B))
    real_BT = ~np.asarray(padding_BT)
    np.testing.assert_array_equal(got[real_BT], expected[real_BT])
    np.testing.assert_allclose(
        np.asarray(forward(params, longer_BT, lengths_B))[:, :16][real_BT],
        expected[real_BT],
        atol=2e-6,
    )


def test_no_gradient_reaches_the_padding(params):
    tokens_BT, lengths_B = tiny_batch()
    real_BT = jnp.arange(16) < lengths_B[:, None]
    tokens_BT = jnp.where(real_BT, tokens_BT, 59)  # a token that stands only in the padding
    tokens_BT = jnp.where(real_BT & (tokens_BT == 59), 58, tokens_BT)

    def loss(params):
        hidden_BTD = encode(TINY, params, tokens_BT, lengths_B)
        return (hidden_BTD**2 * jnp.cos(jnp.arange(32)) * real_BT[..., None]).sum()

    gradients = jax.jit(jax.grad(loss))(params)["embeddings"]
    assert not np.asarray(gradients["word"]["embedding"])[59].any()
    assert np.asarray(gradients["word"]["embedding"])[58].any()
    assert np.asarray(gradients["position"]["embedding"])[:16].any(axis=1).all()
    only_padding = dict(gradients["position"])["embedding"][16:]
    assert not np.asarray(only_padding).any()


def test_a_cell_alone_equals_the_cell_in_a_batch(params):
    tokens_BT, lengths_B = tiny_batch()
    together = forward(params, tokens_BT, lengths_B)
    alone = forward(params, tokens_BT[1:2, :5], lengths_B[1:2])
    np.testing.assert_allclose(alone[0], together[1, :5], atol=2e-6)


def test_rank_matters_and_so_does_every_gene(params):
    tokens_BT = jnp.array([[5, 6, 7, 8]])
    swapped_BT = jnp.array([[6, 5, 7, 8]])
    lengths_B = jnp.array([4])
    one = forward(params, tokens_BT, lengths_B)
    other = forward(params, swapped_BT, lengths_B)
    assert np.abs(np.asarray(one - other))[0, 3].max() > 1e-4


def test_stopping_below_equals_the_hidden_state_of_all_layers(params):
    tokens_BT, lengths_B = tiny_batch()
    everything = jax.jit(functools.partial(encode_all_layers, TINY))
    hidden = everything(params, tokens_BT, lengths_B)
    assert hidden.shape == (4, 4, 16, 32)
    for layers in range(4):
        stopped = forward(params, tokens_BT, lengths_B, layers=layers)
        np.testing.assert_allclose(stopped, hidden[layers], atol=2e-6)


def test_nothing_above_the_asked_layer_is_computed(params):
    tokens_BT, lengths_B = tiny_batch()

    def scanned_blocks(layers: int) -> list[int]:
        jaxpr = jax.make_jaxpr(lambda p: encode(TINY, p, tokens_BT, lengths_B, layers=layers))
        scans = [eqn for eqn in jaxpr(params).eqns if eqn.primitive.name == "scan"]
        return [eqn.params["length"] for eqn in scans]

    assert scanned_blocks(1) == [1]
    assert scanned_blocks(3) == [3]


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputing_changes_no_gradient(params, remat):
    tokens_BT, lengths_B = tiny_batch()

    def loss(params, remat):
        runtime = Runtime(remat=remat)
        key = jax.random.key(3)
        hidden = encode(TINY, params, tokens_BT, lengths_B, runtime=runtime, dropout_key=key)
        return (hidden[:, 0] ** 2 * jnp.arange(32)).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    kept, again = gradient(params, "none"), gradient(params, remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), kept, again)


def test_dropout_is_drawn_from_its_key_and_off_without_one(params):
    tokens_BT, lengths_B = tiny_batch()

    def run(key):
        return np.asarray(forward(params, tokens_BT, lengths_B, dropout_key=key))

    assert np.array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
    assert not np.array_equal(run(jax.random.key(1)), run(jax.random.key(2)))
    assert np.array_equal(run(None), run(None))


@pytest.mark.parametrize(("name", "bound"), [("bfloat16", 0.06), ("float16", 0.008)])
def test_short_number_formats_stay_close(params, name, bound):
    tokens_BT, lengths_B = tiny_batch()
    runtime = Runtime(precision=precision_preset(name))
    exact = forward(params, tokens_BT, lengths_B)
    short = forward(params, tokens_BT, lengths_B, runtime=runtime)
    assert short.dtype == runtime.precision.compute
    real_BT = np.arange(16) < np.asarray(lengths_B)[:, None]
    difference = np.abs(np.asarray(exact) - np.asarray(short, np.float32))[real_BT]
    assert 0 < difference.max() < bound


def test_logits_at_masked_positions_equal_the_full_head(params):
    tokens_BT, lengths_B = tiny_batch()
    precision = precision_preset("float32")
    hidden_BTD = forward(params, tokens_BT, lengths_B)
    everywhere = jnp.broadcast_to(jnp.arange(16), (4, 16))
    full_BTV = masked_gene_logits(TINY, params, hidden_BTD, everywhere, precision)
    positions_BM = jnp.array([[0, 7], [4, 0], [0, 0], [8, 3]])
    some_BMV = masked_gene_logits(TINY, params, hidden_BTD, positions_BM, precision)
    expected = np.take_along_axis(np.asarray(full_BTV), np.asarray(positions_BM)[..., None], 1)
    np.testing.assert_allclose(some_BMV, expected, atol=1e-6)


def test_what_does_not_fit_is_refused(params):
    tokens_BT, lengths_B = tiny_batch()
    with pytest.raises(InputError, match="layers 0 to 3"):
        encode(TINY, params, tokens_BT, lengths_B, layers=4)
    with pytest.raises(InputError, match="24 positions"):
        encode(TINY, params, jnp.zeros((1, 25), jnp.int32), jnp.array([25]))
    with pytest.raises(InputError, match="not divisible"):
        EncoderConfig(60, 1, 30, 4, 8, 8)
    with pytest.raises(InputError, match='did you mean "v1_10m"'):
        preset("v1-10m")


@pytest.mark.reference_data
@pytest.mark.parametrize("name", ["v1_tiny", "v2_tiny"])
def test_hidden_states_and_logits_are_the_originals(reference_dir, name):
    config, params = bert_weights(reference_dir / "models" / name)
    expected = np.load(reference_dir / f"forward_{name}.npz")

    @jax.jit
    def run(tokens_BT, lengths_B, positions_BM):
        hidden = encode_all_layers(config, params, tokens_BT, lengths_B)
        precision = precision_preset("float32")
        return hidden, masked_gene_logits(config, params, hidden[-1], positions_BM, precision)

    hidden, logits = run(expected["input_ids"], expected["lengths"], expected["mlm_pos"])
    got = np.asarray(hidden)[:, expected["hidden_cell"], expected["hidden_pos"]]
    np.testing.assert_allclose(got, expected["hidden"], rtol=0, atol=5e-5)
    sample = np.asarray(logits)[..., expected["mlm_vocab_sample"]]
    np.testing.assert_allclose(sample, expected["mlm_logits_sample"], rtol=0, atol=5e-5)
    top = np.argsort(-np.asarray(logits), axis=-1)[..., :1]
    np.testing.assert_array_equal(top, expected["mlm_top_ids"][..., :1])
