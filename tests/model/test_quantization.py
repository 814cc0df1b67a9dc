"""Weights in few bits: codes by their definition, memory, and the encoder on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("qwix", reason='no qwix: pip install "geneformer_jax[quantize]"')

from flax import traverse_util

from geneformer_jax.attention_analysis.profile import attention_profile
from geneformer_jax.model.config import QUANTIZATIONS, EncoderConfig
from geneformer_jax.model.encoder import (
    abstract_params,
    encode,
    encode_all_layers,
    masked_gene_logits,
)
from geneformer_jax.model.gated_encoding import embed_moved, run_gated_blocks
from geneformer_jax.model.partial_encoding import first_token, run_blocks
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.pretrained import StackedArray, quantized_params
from geneformer_jax.model.quantization import quantize_rows
from geneformer_jax.model.runtime import Runtime
from tests.helpers.rounded import NF4_LEVELS, in_floats, is_rounded, read_codes

# No row is a multiple of a block, and heads are of another size than in any published model.
ODD = EncoderConfig(60, 3, 20, 4, 30, 24, dropout=0.0, attention_dropout=0.0)


@functools.cache
def odd_params(kind: str):
    rng = np.random.default_rng(0)

    def drawn(path, shape):
        leaf = rng.normal(path[-1] == "scale", 0.3, shape).astype(np.float32)
        return StackedArray(path, shape, iter(np.array_split(leaf, shape[0])))

    flat = traverse_util.flatten_dict(abstract_params(ODD))
    arrays = (drawn(path, leaf.shape) for path, leaf in sorted(flat.items()))
    return quantized_params(arrays, kind)[0]


def batch() -> tuple[jax.Array, jax.Array]:
    lengths_B = jnp.array([16, 5, 1, 9])
    tokens_BT = jax.random.randint(jax.random.key(1), (4, 16), 2, 60)
    return jnp.where(jnp.arange(16) < lengths_B[:, None], tokens_BT, 0), lengths_B


@pytest.mark.parametrize("size", [(4, 64), (3, 50, 2), (5, 7)])
def test_codes_are_the_nearest_levels_of_their_block(size):
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 0.1, (6, *size)).astype(np.float32)
    rows[2] = 0
    parts = np.split(rows, [1, 4])
    flat = rows.reshape(6, -1)
    padded = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 64))).reshape(6, -1, 64).astype(np.float64)
    largest = np.abs(padded).max(axis=-1, keepdims=True)
    # bfloat16 has eight bits of a scale.
    off = largest * 2**-8

    nf4 = quantize_rows(iter(parts), rows.shape, "nf4")
    assert nf4.codes.nbytes == padded.size / 2 and nf4.scales.nbytes == padded.size / 32
    nearest = np.abs(padded[..., None] - largest[..., None] * NF4_LEVELS).argmin(axis=-1)
    expected = (largest * NF4_LEVELS[nearest]).reshape(6, -1)[:, : flat.shape[1]]
    tolerance = np.broadcast_to(off, padded.shape).reshape(6, -1)[:, : flat.shape[1]]
    assert (np.abs(read_codes(nf4).reshape(6, -1) - expected) <= tolerance).all()

    int8 = quantize_rows(iter(parts), rows.shape, "int8")
    assert int8.codes.nbytes == padded.size
    half_step = np.broadcast_to(largest / 250, padded.shape).reshape(6, -1)[:, : flat.shape[1]]
    assert (np.abs(read_codes(int8).reshape(6, -1) - flat) <= half_step + tolerance).all()
    assert not read_codes(int8)[2].any() and not read_codes(nf4)[2].any()


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_no_large_weight_is_left_in_float(kind):
    flat = traverse_util.flatten_dict(odd_params(kind))
    floats = {path for path, leaf in flat.items() if not is_rounded(leaf)}
    assert {path for path in floats if path[0] == "blocks" and path[-1] == "kernel"} == set()
    assert {path[1] for path in floats if path[0] == "embeddings"} == {"norm", "token_type"}
    number_types = {path[1]: leaf.codes.dtype for path, leaf in flat.items() if is_rounded(leaf)}
    assert number_types.pop("down") == jnp.int8
    assert set(number_types.values()) == {jnp.dtype("int8" if kind == "int8" else "uint8")}


@pytest.mark.parametrize("kind", [pytest.param("int8", marks=pytest.mark.slow), "nf4"])
def test_every_way_through_the_encoder_computes_with_what_the_codes_stand_for(kind):
    tokens_BT, lengths_B = batch()
    runtime = Runtime(attention="xla")

    @jax.jit
    def ways(params):
        hidden = encode(ODD, params, tokens_BT, lengths_B)
        bias_BT = jnp.linspace(-1, 0, 16) * jnp.ones((4, 1))
        to = {"runtime": runtime}
        states = encode_all_layers(ODD, params, tokens_BT, lengths_B)
        is_top_BT = jnp.arange(16) < jnp.full((4, 1), 3)
        return {
            "encode": hidden,
            "all layers": states,
            "blocks": run_blocks(ODD, params, states[1], lengths_B, first=1, last=3, **to),
            "first": first_token(ODD, params, states[2], lengths_B, block=2, **to),
            "gated": run_gated_blocks(ODD, params, states[0], lengths_B, bias_BT, last=2, **to),
            "moved": embed_moved(ODD, params, tokens_BT, bias_BT + 1, runtime),
            "logits": masked_gene_logits(
                ODD, params, hidden, jnp.zeros((4, 2), int), precision_preset("float32")
            ),
            "profile": attention_profile(
                ODD, params, tokens_BT, lengths_B, is_top_BT=is_top_BT, runtime=runtime
            ),
        }

    found, expected = ways(odd_params(kind)), ways(in_floats(odd_params(kind)))
    for name in expected:
        for one, other in zip(
            jax.tree.leaves(found[name]), jax.tree.leaves(expected[name]), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-5, err_msg=name)
