"""What a run costs: floating point operations, bytes on each device, hours."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from geneformer_jax.model.config import EncoderConfig

# Dense matrix FLOP/s of one device as its maker states them, by number format: NVIDIA's data sheets
# of V100, A100, H100 and H200 (SXM where nothing else is said), Google Cloud's pages on TPUs. The
# first name that is part of JAX's name of the device counts.
_PEAKS = {
    "H100 PCIe": {"bfloat16": 756e12, "float16": 756e12, "float32": 51e12},
    "H100 NVL": {"bfloat16": 835e12, "float16": 835e12, "float32": 60e12},
    "H100": {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12},
    "H200": {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12},
    "A100": {"bfloat16": 312e12, "float16": 312e12, "float32": 19.5e12},
    "V100": {"float16": 125e12, "float32": 15.7e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},
    "TPU v6 lite": {"bfloat16": 918e12},
}


class Speed(NamedTuple):
    """How fast a device is taken to be.

    Attributes:
      peak: its matrix FLOP/s; 0 takes what its maker states, where that is known.
      mfu: fraction of the peak that real tokens reach; a guess where nothing was measured.
    """

    peak: float = 0.0
    mfu: float = 0.3


ASSUMED_SPEED = Speed()


def step_flops(config: EncoderConfig, lengths: np.ndarray, masked_genes: float) -> float:
    """Returns the floating point operations that one training step needs, forward and backward.

    Counted for real tokens and masked genes only, so that padding shows as lost speed; recomputing
    activations is not counted. Matrix products alone: everything else is of lower order.

    Args:
      config: shape of the model.
      lengths: [cells] real tokens of each cell.
      masked_genes: how many are predicted.
    """
    D, F, L = config.width, config.feed_forward, config.layers
    lengths = np.asarray(lengths, np.float64)
    block = 4 * D * D + 2 * D * F
    forward = 2 * L * block * lengths.sum()
    forward += 4 * L * D * (lengths**2).sum()
    forward += 2 * (D * D + config.vocabulary_size * D) * masked_genes
    return 3 * float(forward)


def peak_flops(device: jax.Device, precision: str) -> float | None:
    """Returns a device's matrix FLOP/s in a number format, or None where it is not known."""
    for name, peaks in _PEAKS.items():
        if name in device.device_kind:
            return peaks.get(precision)
    return None


def hours_line(flops: float, devices: int, device: jax.Device, precision: str, speed: Speed) -> str:
    """Returns a line with the hours that a run may take, and what that rests on."""
    peak = speed.peak or peak_flops(device, precision)
    if not peak:
        return (
            f"hours: not known, as the peak of {device.device_kind} in {precision} is not; "
            "state it with `device_tflops`"
        )
    hours = flops / (devices * peak * speed.mfu) / 3600
    return (
        f"hours: {hours:,.3g}, if {devices} {device.device_kind} reach {speed.mfu:.0%} of "
        f"{peak / 1e12:,.4g} TFLOP/s each in {precision} (peak "
        f"{'given' if speed.peak else 'as its maker states'}, fraction assumed)"
    )


def bytes_per_device(abstract: Any) -> int:
    """Returns the bytes that the arrays of a tree with shardings take on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )
