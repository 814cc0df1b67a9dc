"""How many edited cells a device holds at a time."""

import jax

from geneformer_jax.analysis.perturbation_pass import PerturbationPass
from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.batches import (
    ACCELERATOR_SPEED,
    SPEED,
    TOKENS_PER_ACCELERATOR,
    TOKENS_PER_DEVICE,
)
from geneformer_jax.model.attention.plain import CHUNK
from geneformer_jax.model.config import EncoderConfig

_SHARE = 0.6
# Seconds that compiling the programs of one more padded length takes, roughly.
_COMPILING = {"cpu": 4.0}
_COMPILING_FOR_ACCELERATOR = 30.0
_FLOAT32 = 4


def choose_rows(pass_: PerturbationPass, padded: int, tokens: int | None) -> int:
    """Returns the number of edited cells of `padded` tokens that a device encodes at a time.

    Args:
      pass_: what is computed.
      padded: T.
      tokens: padded tokens at a time; by default what the platform does best with, and no more than
        a part of the memory that the device says it has left.

    Raises:
      InputError: `tokens` is below 1.
    """
    if tokens is not None:
        if tokens < 1:
            raise InputError(f"tokens_per_device is {tokens}; it must be at least 1")
        return max(tokens // padded, 1)
    device = pass_.mesh.devices.flat[0]
    best = TOKENS_PER_DEVICE.get(device.platform, TOKENS_PER_ACCELERATOR)
    return max(min(best // padded, _fitting(pass_, padded, device)), 1)


def bytes_of_row(pass_: PerturbationPass, padded: int) -> int:
    """Estimates the memory that one edited cell takes while it is encoded and compared."""
    config, itemsize = pass_.config, pass_.runtime.precision.compute.dtype.itemsize
    scores = {"xla": padded, "chunked": min(CHUNK, padded)}.get(pass_.runtime.attention, 0)
    activations = (8 * config.width + 2 * config.feed_forward) * itemsize
    comparison = 4 * config.width * _FLOAT32
    # Scores and weights, in float32.
    return padded * (activations + comparison + 2 * scores * config.heads * _FLOAT32)


def _fitting(pass_: PerturbationPass, padded: int, device: jax.Device) -> int:
    told = device.memory_stats() or {}
    if "bytes_limit" not in told:
        return padded
    free = told["bytes_limit"] - told.get("bytes_in_use", 0)
    return int(free * _SHARE) // bytes_of_row(pass_, padded)


def tokens_worth_compiling(config: EncoderConfig, platform: str, length: int) -> float:
    """Returns the tokens that can be encoded in the time of compiling for one more length."""
    D, F = config.width, config.feed_forward
    per_token = config.layers * (8 * D * D + 4 * D * F + 4 * D * length)
    seconds = _COMPILING.get(platform, _COMPILING_FOR_ACCELERATOR)
    return seconds * SPEED.get(platform, ACCELERATOR_SPEED) / per_token


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device failed for lack of memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
