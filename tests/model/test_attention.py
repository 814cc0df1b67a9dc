"""Every attention implementation against a slow float64 version that never sees a pad."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from geneformer_jax.common.errors import InputError
from geneformer_jax.model.attention.dispatch import attend, attention_weights
from geneformer_jax.model.attention.plain import CHUNK
from tests.helpers.tolerances import ATTENTION as BOUNDS

# More than one chunk, and a multiple of neither the chunk nor the TPU's 128 lanes.
B, T, N, H = 4, 300, 2, 8
LENGTHS = np.array([T, 171, 0, 1], np.int32)
PLAIN = ("xla", "chunked", "by_head")
ON_CPU = (*PLAIN, "splash")


def arrays(dtype="float32", seed=0):
    """Queries, keys, values and the cotangent of the output, all of them non-zero at pads too."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(B, T, N, H)), dtype) for _ in range(4)]


def as_segments(lengths):
    return (np.arange(T) < lengths[:, None]).astype(np.int32)


def packed_segments():
    """Rows of several cells and a tail of pads, a row of one cell, an empty row."""
    segments = np.zeros((B, T), np.int32)
    segments[0, :290] = np.repeat([1, 2, 3, 4], [40, 1, 200, 49])
    segments[1, :] = np.repeat([1, 2], [150, 150])
    segments[3, :] = 1
    return segments


def slow_attention(q, k, v, d_out, segments, multipliers=None):
    """Attention and its gradients in float64, one segment of one head at a time, by hand.

    `multipliers` [B, N, T, T] are what dropout multiplies the weights with.
    """
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    out, d_q, d_k, d_v = (np.zeros_like(q) for _ in range(4))
    for b, n in np.ndindex(B, N):
        for segment in set(segments[b]) - {0}:
            at = np.flatnonzero(segments[b] == segment)
            here = (b, at, n)
            scores = q[here] @ k[here].T / np.sqrt(H)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            factor = 1.0 if multipliers is None else multipliers[b, n][np.ix_(at, at)]
            out[here] = (weights * factor) @ v[here]
            d_v[here] = (weights * factor).T @ d_out[here]
            d_weights = (d_out[here] @ v[here].T) * factor
            d_scores = weights * (d_weights - (weights * d_weights).sum(1, keepdims=True))
            d_q[here] = d_scores @ k[here] / np.sqrt(H)
            d_k[here] = d_scores.T @ q[here] / np.sqrt(H)
    return out, d_q, d_k, d_v


@partial(jax.jit, static_argnames=("implementation", "rate"))
def value_and_gradients(q, k, v, d_out, lengths, segments, key=None, *, implementation, rate=0.0):
    def run(q, k, v):
        return attend(
            q,
            k,
            v,
            lengths,
            segments_BT=segments,
            implementation=implementation,
            dropout_rate=rate,
            dropout_key=key,
        )

    out, transpose = jax.vjp(run, q, k, v)
    return out, *transpose(d_out)


def assert_near(actual, expected, bound):
    for name, a, e in zip(("out", "d_q", "d_k", "d_v"), actual, expected, strict=True):
        error = np.abs(np.asarray(a, np.float64) - e).max()
        assert error <= bound * np.abs(e).max(), f"{name}: {error}"


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("implementation", ON_CPU)
def test_equals_the_slow_version_over_padded_cells(implementation, dtype):
    if (implementation, dtype) == ("splash", "float16"):
        pytest.skip("TPUs have no float16")
    q, k, v, d_out = arrays(dtype)
    actual = value_and_gradients(q, k, v, d_out, LENGTHS, None, implementation=implementation)
    assert all(x.dtype == dtype for x in actual)
    segments = as_segments(LENGTHS)
    assert_near(actual, slow_attention(q, k, v, d_out, segments), BOUNDS[dtype])
    for x in actual:
        assert not np.asarray(x)[segments == 0].any(), "pads must yield exact zeros"


@pytest.mark.parametrize("implementation", ON_CPU)
def test_equals_the_slow_version_over_packed_cells(implementation):
    q, k, v, d_out = arrays()
    segments = packed_segments()
    actual = value_and_gradients(q, k, v, d_out, None, segments, implementation=implementation)
    assert_near(actual, slow_attention(q, k, v, d_out, segments), BOUNDS["float32"])
    for x in actual:
        assert not np.asarray(x)[segments == 0].any()


@pytest.mark.parametrize("implementation", ON_CPU)
def test_what_stands_at_pads_changes_no_bit(implementation):
    pads = (as_segments(LENGTHS) == 0)[:, :, None, None]
    one = arrays()
    other = [jnp.where(pads, 1e4, x) for x in one]
    run = partial(value_and_gradients, implementation=implementation)
    for a, b in zip(run(*one, LENGTHS, None), run(*other, LENGTHS, None), strict=True):
        np.testing.assert_array_equal(a, b)


def test_large_scores_of_half_precision_stay_finite():
    """A score of 20,000 fits float16, its sum with a mask of the smallest float16 would not."""
    q, k, v, d_out = arrays("float16")
    for implementation in PLAIN:
        actual = value_and_gradients(
            q * 60, k * 60, v, d_out, LENGTHS, None, implementation=implementation
        )
        assert all(np.isfinite(x).all() for x in actual)


def dropout_multipliers(key, rate):
    """What dropout multiplies the weights [B, N, T, T] with, by the integers of Python."""
    words = [np.asarray(jax.random.bits(each, (B, T, N))) for each in jax.random.split(key)]
    of_queries, of_keys = (each.swapaxes(1, 2).astype(object) for each in words)
    x = (of_queries[..., None] + of_keys[..., None, :]) % 2**32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> shift)) * factor % 2**32
    return (x >= round(rate * 2**32)).astype(float) / (1 - rate)


def sharded_over_eight_devices(*operands):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    sharding = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
    return mesh, [jax.device_put(x, sharding) for x in operands]


@pytest.mark.parametrize("implementation", PLAIN)
def test_dropout_equals_an_explicit_mask_on_any_mesh(implementation):
    rate, key = 0.3, jax.random.key(7)
    operands = arrays()
    assert T > CHUNK
    multipliers = dropout_multipliers(key, rate)
    expected = slow_attention(*operands, as_segments(LENGTHS), multipliers)
    run = partial(value_and_gradients, implementation=implementation, rate=rate)
    assert_near(run(*operands, LENGTHS, None, key), expected, BOUNDS["float32"])
    mesh, sharded = sharded_over_eight_devices(*operands)
    with jax.set_mesh(mesh):
        assert_near(run(*sharded, LENGTHS, None, key), expected, BOUNDS["float32"])


@pytest.mark.parametrize("implementation", PLAIN)
def test_dropout_keeps_each_weight_independently(implementation):
    """With equal scores and unit vectors as values, the output is the dropped weights."""
    rate, positions = 0.2, 2 * CHUNK
    zeros = jnp.zeros((2, positions, 1, positions))
    values = jnp.broadcast_to(jnp.eye(positions)[:, None], zeros.shape)
    lengths = jnp.full(2, positions, jnp.int32)
    run = partial(
        attend, zeros, zeros, values, lengths, implementation=implementation, dropout_rate=rate
    )
    weights = np.asarray(run(dropout_key=jax.random.key(0)))[:, :, 0]
    kept = weights > 0
    np.testing.assert_allclose(weights[kept], 1 / positions / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)
    # Rows of the two cells, the two chunks and another key agree no more often than by chance.
    chance = rate**2 + (1 - rate) ** 2
    another = np.asarray(run(dropout_key=jax.random.key(1)))[:, :, 0] > 0
    for other in (kept[::-1], np.roll(kept, CHUNK, axis=1), another):
        tolerance = 5 * np.sqrt(2 * chance * (1 - chance) / kept.size)
        assert abs((kept == other).mean() - chance) < tolerance
    # Two queries and two keys share four words: their four weights are independent all the same.
    signs = np.where(kept, rate, rate - 1) / np.sqrt(rate * (1 - rate))
    for by in (1, 7, CHUNK):
        pair = signs * np.roll(signs, by, axis=1)
        four = pair * np.roll(pair, by, axis=2)
        assert abs(four.mean()) < 5 / np.sqrt(four.size / 4)


def test_nothing_is_dropped_without_a_key():
    lower = partial(value_and_gradients.lower, *arrays(), LENGTHS, None, None)
    for implementation in PLAIN:
        texts = {lower(implementation=implementation, rate=r).as_text() for r in (0.0, 0.5)}
        assert len(texts) == 1


def test_chunked_is_differentiable_inside_rematerialised_layers():
    """With dropout, whose mask the recomputation must draw again."""
    q, k, v, _ = arrays()
    key = jax.random.key(3, impl="rbg")

    def loss(q, wrap):
        @wrap
        def layer(x, index):
            options = {"dropout_rate": 0.1, "dropout_key": jax.random.fold_in(key, index)}
            return attend(x, k, v, LENGTHS, implementation="chunked", **options), None

        return (jax.lax.scan(layer, q, jnp.arange(2))[0] ** 2).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    expected = np.asarray(gradient(q, lambda layer: layer), np.float64)
    bound = BOUNDS["float32"] * np.abs(expected).max()
    np.testing.assert_allclose(gradient(q, jax.checkpoint), expected, rtol=0, atol=bound)


def test_attention_weights_are_those_of_the_slow_version():
    q, k, _, _ = arrays()
    weights = np.asarray(jax.jit(attention_weights)(q, k, LENGTHS))
    assert weights.dtype == np.float32
    for b, n in np.ndindex(B, N):
        length = LENGTHS[b]
        scores = np.float64(q[b, :length, n]) @ np.float64(k[b, :length, n]).T / np.sqrt(H)
        expected = np.zeros((T, T))
        unscaled = np.exp(scores)
        expected[:length, :length] = unscaled / unscaled.sum(1, keepdims=True)
        np.testing.assert_allclose(weights[b, n], expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("implementation", ON_CPU)
def test_a_mesh_changes_nothing_and_moves_nothing(implementation):
    """Batch over data and fsdp, heads over tensor: each device computes its own part alone."""
    operands = arrays()
    expected = value_and_gradients(*operands, LENGTHS, None, implementation=implementation)
    mesh, operands = sharded_over_eight_devices(*operands)
    with jax.set_mesh(mesh):
        lengths = jax.device_put(LENGTHS, NamedSharding(mesh, P(("data", "fsdp"))))
        compiled = value_and_gradients.lower(
            *operands, lengths, None, implementation=implementation
        ).compile()
        actual = compiled(*operands, lengths, None)
    for a, e in zip(actual, expected, strict=True):
        assert a.sharding.is_equivalent_to(operands[0].sharding, a.ndim)
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)
    collectives = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    assert not re.findall(collectives, compiled.as_text())


def gradient_memory(positions):
    shape = jax.ShapeDtypeStruct((2, positions, 2, 16), jnp.float32)
    lengths = jax.ShapeDtypeStruct((2,), jnp.int32)
    compiled = value_and_gradients.lower(
        shape, shape, shape, shape, lengths, None, implementation="chunked"
    ).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_chunked_grows_linearly():
    assert gradient_memory(4096) < 2.2 * gradient_memory(2048)


@pytest.mark.parametrize("implementation", PLAIN)
def test_half_precision_multiplies_in_half_precision(implementation):
    """Forward and backward: a float32 operand would cost a V100 its tensor cores."""
    traced = value_and_gradients.trace(
        *arrays("float16"), LENGTHS, None, implementation=implementation
    )
    lowered = traced.lower(lowering_platforms=("cuda",))
    products = re.findall(r"stablehlo\.dot_general.*: \((.*)\) -> ", lowered.as_text())
    assert len(products) >= 6
    for operands in products:
        assert operands.count("xf16>") == 2, operands


def as_bfloat16():
    shape = jax.ShapeDtypeStruct((B, T, N, 64), jnp.bfloat16)
    return (shape,) * 4, jax.ShapeDtypeStruct((B,), jnp.int32)


def lower_for(platform, implementation):
    operands, lengths = as_bfloat16()
    traced = value_and_gradients.trace(*operands, lengths, None, implementation=implementation)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_cudnn_is_told_lengths_and_no_mask(monkeypatch):
    """Lowered without a GPU; JAX only asks for a cuDNN version, which the test stands in for."""
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91002
    )
    text = lower_for("cuda", "cudnn")
    calls = [line for line in text.splitlines() if "custom_call @__cudnn$" in line]
    assert [re.search(r"cudnn\$(\w+)", call)[1] for call in calls] == [
        "fmhaSoftmax",
        "fmhaSoftmaxBackward",
    ]
    for call in calls:
        assert re.search(r'"mask_type\W+PADDING', call.replace("\\22", '"'))
        operands = re.search(r": \(([^()]*)\) -> ", call)[1]
        assert operands.count(f"tensor<{B}xi32>") == 2
    assert f"{T}x{T}" not in text


def test_splash_lowers_to_tpu_kernels():
    """One kernel forward, one for queries and one for keys and values backward."""
    assert lower_for("tpu", "splash").count("@tpu_custom_call") == 3


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU")
@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_cudnn_equals_the_slow_version(dtype):
    q, k, v, d_out = arrays(dtype)
    actual = value_and_gradients(q, k, v, d_out, LENGTHS, None, implementation="cudnn")
    segments = as_segments(LENGTHS)
    assert_near(actual, slow_attention(q, k, v, d_out, segments), BOUNDS[dtype])
    for x in actual:
        assert not np.asarray(x)[segments == 0].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implementation": "xlaa"}, r'"xlaa" is unknown: use one of .*did you mean "xla"'),
        ({"implementation": "xla", "segments_BT": as_segments(LENGTHS)}, "give one"),
        (
            {"implementation": "cudnn", "dropout_rate": 0.1, "dropout_key": jax.random.key(0)},
            r"needs attention dropout 0, not 0\.1",
        ),
        (
            {"implementation": "splash", "dropout_rate": 0.1, "dropout_key": jax.random.key(0)},
            r"needs attention dropout 0, not 0\.1",
        ),
    ],
)
def test_attend_refuses_what_it_cannot_do(options, message):
    q, k, v, _ = arrays()
    with pytest.raises(InputError, match=message):
        attend(q, k, v, LENGTHS, **options)


def test_cudnn_refuses_packed_cells():
    q, k, v, _ = arrays("bfloat16")
    with pytest.raises(InputError, match="rows of one cell each"):
        attend(q, k, v, None, implementation="cudnn", segments_BT=packed_segments())
