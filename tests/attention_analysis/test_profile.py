"""What heads attend to, reduced on the device, against the whole matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geneformer_jax.attention_analysis import profile as profiles
from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.huggingface import read_model
from geneformer_jax.model.attention import dispatch
from geneformer_jax.model.attention.dispatch import attention_weights
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import encode_all_layers, init_params
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.runtime import Runtime

CONFIG = EncoderConfig(
    vocabulary_size=40, layers=2, width=16, heads=4, feed_forward=16, positions=64, dropout=0.1
)
# Weights made six times larger attend sharply, and make scores of up to a hundred, whose rounding
# in float32 is worth this much in the weights.
ATOL = 1e-5
LENGTHS = np.array([50, 7, 0, 64, 1], np.int32)
FLOAT32 = precision_preset("float32")


@functools.cache
def toy():
    """Returns weights that attend unevenly, tokens and the mask of top ranks."""
    params = jax.tree.map(lambda leaf: 6 * leaf, init_params(CONFIG, jax.random.key(0)))
    tokens_BT = np.random.default_rng(0).integers(2, 40, (5, 64)).astype(np.int32)
    is_top_BT = np.arange(64) < np.maximum(LENGTHS // 10, 1)[:, None]
    return params, tokens_BT, is_top_BT


@functools.cache
def whole_weights() -> np.ndarray:
    """Returns every weight [L, B, N, T, T], layer by layer from the hidden state below it."""
    params, tokens_BT, _ = toy()
    hidden = jax.jit(encode_all_layers, static_argnums=0)(CONFIG, params, tokens_BT, LENGTHS)
    weights = []
    for layer in range(CONFIG.layers):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        project = functools.partial(jnp.einsum, "btd,dnh->btnh", hidden[layer])
        q, k = (project(one[name]["kernel"]) + one[name]["bias"] for name in ("query", "key"))
        weights.append(np.asarray(attention_weights(q, k, LENGTHS), np.float64))
    return np.stack(weights)


def profile_of(attention: str, chosen_BS=None, chunk=None) -> profiles.AttentionProfile:
    params, tokens_BT, is_top_BT = toy()
    run = functools.partial(
        profiles.attention_profile, CONFIG, runtime=Runtime(FLOAT32, attention), chunk=chunk
    )
    got = jax.jit(run)(params, tokens_BT, LENGTHS, is_top_BT=is_top_BT, chosen_BS=chosen_BS)
    return jax.tree.map(np.asarray, got)


@pytest.mark.parametrize("attention", dispatch.PROFILED)
def test_reductions_are_those_of_the_whole_matrices(attention):
    weights, (_, _, is_top_BT) = whole_weights(), toy()
    # A chunk that does not divide the padded length.
    got = profile_of(attention, chunk=24)
    queries = np.maximum(LENGTHS, 1)[:, None, None]
    np.testing.assert_allclose(got.received_LBNT, weights.sum(3) / queries, atol=ATOL)
    logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
    np.testing.assert_allclose(got.entropy_LBNT, -(weights * logs).sum(4), atol=ATOL)
    top = (weights * is_top_BT[:, None, None, :]).sum(4)
    np.testing.assert_allclose(got.top_LBNT, top, atol=ATOL)
    sums = got.received_LBNT.sum(-1)
    np.testing.assert_allclose(sums, np.broadcast_to(LENGTHS[:, None] > 0, sums.shape), atol=ATOL)
    assert weights.max() > 0.3, "attention that is the same everywhere would show nothing"


@pytest.mark.parametrize("attention", dispatch.PROFILED)
def test_pairs_are_entries_of_the_whole_matrices(attention):
    chosen_BS = np.array([[3, 49, 64], [0, 6, 7], [0, 1, 64], [63, 2, 5], [0, 64, 64]], np.int32)
    got = profile_of(attention, chosen_BS).pairs_LBNSS
    weights = whole_weights()
    for cell, chosen in enumerate(chosen_BS):
        for i, query in enumerate(chosen):
            for j, key in enumerate(chosen):
                there = max(query, key) < LENGTHS[cell]
                wanted = weights[:, cell, :, query, key] if there else 0
                np.testing.assert_allclose(got[:, cell, :, i, j], wanted, atol=ATOL)


@pytest.mark.parametrize("attention", ["cudnn", "splash"])
def test_fused_kernels_are_refused(attention):
    with pytest.raises(
        InputError, match=f'"{attention}" never holds its weights.*xla, chunked, by_head or auto'
    ):
        profile_of(attention)


@pytest.mark.reference_data
@pytest.mark.parametrize("attention", dispatch.PROFILED)
@pytest.mark.parametrize("name", ["v1_tiny", "v2_tiny"])
def test_received_attention_is_the_originals(reference_dir, name, attention):
    model = read_model(reference_dir / "models" / name).model
    expected = np.load(reference_dir / f"forward_{name}.npz")
    cells = expected["attention_cells"]
    lengths, T = expected["lengths"][cells], int(expected["lengths"][cells].max())
    tokens_BT = expected["input_ids"][cells, :T]
    top_B = np.maximum(lengths // 10, 1)
    run = functools.partial(
        profiles.attention_profile, model.config, runtime=Runtime(FLOAT32, attention), chunk=16
    )
    is_top_BT = np.arange(T) < top_B[:, None]
    got = jax.jit(run)(model.params, tokens_BT, lengths, is_top_BT=is_top_BT)
    for row in range(len(cells)):
        weights = expected[f"attention_{row}"]
        n = weights.shape[-1]
        received = np.asarray(got.received_LBNT)[:, row, :, :n]
        np.testing.assert_allclose(received, weights.mean(axis=2), rtol=0, atol=1e-6)
        top = np.asarray(got.top_LBNT)[:, row, :, :n]
        np.testing.assert_allclose(top, weights[..., : top_B[row]].sum(-1), rtol=0, atol=2e-6)
