"""Times attention implementations side by side: one JSON line per case on standard output.

    python benchmarks/attention.py [--repeats=9]

Forward, and forward with gradients, in float32, rows padded to three quarters of the length.
Milliseconds are medians over interleaved repeats; `temp_mib` is what XLA allocates for temporaries.
"""

import json
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
from absl import app, flags

from geneformer_jax.model.attention.dispatch import attend

REPEATS = flags.DEFINE_integer("repeats", 9, "measurements of each case", lower_bound=1)
# Batch, tokens, heads, head size.
SHAPES = ((8, 512, 4, 64), (2, 2048, 4, 64))


def attend_jax(q, k, v, lengths):
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="xla"
    )


IMPLEMENTATIONS = {
    "xla": partial(attend, implementation="xla"),
    "chunked": partial(attend, implementation="chunked"),
    "jax.nn.dot_product_attention xla": attend_jax,
}


def with_gradients(forward, q, k, v, lengths, d_out):
    out, transpose = jax.vjp(lambda q, k, v: forward(q, k, v, lengths), q, k, v)
    return out, transpose(d_out)


def cases(shape):
    """Yields name, pass and a compiled function without arguments left to give."""
    q, k, v, d_out = jax.random.normal(jax.random.key(0), (4, *shape))
    lengths = jnp.full(shape[0], shape[1] * 3 // 4, jnp.int32)
    for name, forward in IMPLEMENTATIONS.items():
        for which, function, arguments in (
            ("forward", forward, (q, k, v, lengths)),
            ("forward+backward", partial(with_gradients, forward), (q, k, v, lengths, d_out)),
        ):
            compiled = jax.jit(function).lower(*arguments).compile()
            yield name, which, compiled, arguments


def milliseconds(compiled, arguments):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    return 1000 * (time.perf_counter() - start)


def measure(shape):
    prepared = list(cases(shape))
    timings = [[] for _ in prepared]
    for _ in range(REPEATS.value + 1):
        for (_, _, compiled, arguments), taken in zip(prepared, timings, strict=True):
            taken.append(milliseconds(compiled, arguments))
    for (name, which, compiled, _), taken in zip(prepared, timings, strict=True):
        yield {
            "benchmark": "attention",
            "implementation": name,
            "pass": which,
            "shape_BTNH": shape,
            "dtype": "float32",
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "median_ms": round(statistics.median(taken[1:]), 1),
            "temp_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
        }


def main(_):
    for shape in SHAPES:
        for line in measure(shape):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app.run(main)
