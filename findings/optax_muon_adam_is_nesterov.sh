#!/usr/bin/env bash
# optax.contrib.muon: what it gives to Adam gets another Adam than optax.adamw, and the mask of
# weight decay does not reach it.
#
# Parameters that are no matrices go, as its documentation says, to AdamW.
# Expected: an update of a bias is that of optax.adamw with the same b1 and b2: in the first step the
# learning rate, whatever the gradient; and where weight_decay_mask leaves biases out, no bias
# decays.
# Seen: the first update is 1.47 times the learning rate. muon's own nesterov=True, meant for the
# momentum of matrices, is handed on to AdamW as well, which becomes NAdam (1 + b1 (1 - b1) /
# (1 - b1^2), with b1 0.9). adam_weight_decay decays biases and norms whatever weight_decay_mask says.
# Whoever tunes Muon beside AdamW compares two things at once; optax.partition of muon and adamw keeps
# them apart.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "optax==0.2.8" "jax==0.10.2"
"$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import optax

print("optax", optax.__version__, "jax", jax.__version__)
params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
gradients = jax.tree.map(lambda leaf: 0.01 * leaf, params)


def first_update(optimizer):
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return float(updates["bias"][0])


rate = 1e-3
adamw = first_update(optax.adamw(rate, weight_decay=0.0))
muon = first_update(optax.contrib.muon(rate))
nadam = first_update(optax.nadamw(rate, weight_decay=0.0))
print(f"first update of a bias: adamw {adamw:.6f}, within muon {muon:.6f}, nadamw {nadam:.6f}")
assert abs(adamw + rate) < 1e-7
assert abs(muon - nadam) < 1e-9 and muon / adamw > 1.4

kernels_only = {"kernel": True, "bias": False}
decays = {"weight_decay": 0.1, "adam_weight_decay": 0.1, "weight_decay_mask": kernels_only}
decayed = first_update(optax.contrib.muon(rate, **decays))
print(f"with biases masked out of the decay: {decayed:.6f}")
assert abs(decayed - (muon - rate * 0.1)) < 1e-8, "a bias decays all the same"
PYTHON
