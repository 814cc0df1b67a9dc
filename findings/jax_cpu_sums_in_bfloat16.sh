#!/usr/bin/env bash
# jax from 0.11.2 on: a CPU sums some products of bfloat16 in bfloat16, also where float32 is asked.
#
# Gradients of attention are products of bfloat16 arrays along their first axes, many heads at once,
# and are compared with float64 on a CPU before a GPU is paid for.
# Expected: sums in float32, as on GPUs and TPUs and as JAX's CPU did, so that rounding the result
# is the only error, 0.4% at most; surely so with DotAlgorithmPreset.BF16_BF16_F32, whose name ends
# in the type of the sums.
# Seen: sums of 300 positive products are up to 5% off with jax 0.12.0.1, with the algorithm and
# without. One product by itself, of arrays that are there already, is right (0.2%), so it takes
# a product next to what made its operands. With jax 0.11.1 all of them are right.
# Needs Python 3.12 or later. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/products.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

draw = np.random.default_rng(0)
weights = jnp.asarray(np.abs(draw.normal(size=(4, 2, 300, 300))), jnp.float32)
keys = jnp.asarray(np.abs(draw.normal(size=(4, 300, 2, 8))), jnp.bfloat16)


def multiply(weights, keys, precision):
    def one(weights, keys):
        half = (weights * 1.1).astype(jnp.bfloat16)
        return jnp.einsum("st,sh->th", half, keys, precision=precision)

    return jax.vmap(jax.vmap(one, (0, 1), 1))(weights, keys)


half = np.asarray((weights * 1.1).astype(jnp.bfloat16), np.float64)
exact = np.einsum("bnst,bsnh->btnh", half, np.asarray(keys, np.float64))
for precision in (None, jax.lax.DotAlgorithmPreset.BF16_BF16_F32):
    product = jax.jit(multiply, static_argnums=2)(weights, keys, precision)
    error = (np.abs(np.asarray(product, np.float64) - exact) / exact).max()
    print(f"jax {jax.__version__} {precision}: {error:.2%} off at most")
    assert (error > 0.02) == (jax.__version__ == "0.12.0.1")
PYTHON
for version in 0.11.1 0.12.0.1; do
  "${PYTHON:-python3.12}" -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet "jax[cpu]==$version" "numpy==2.4.6"
  JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/products.py"
  rm -rf "$folder/venv"
done
