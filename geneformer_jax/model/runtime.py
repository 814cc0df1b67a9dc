"""How a model computes: precision, attention and rematerialisation, chosen once for the device."""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from geneformer_jax.model import no_tpu  # noqa: F401 (it acts as it is imported)
from geneformer_jax.model.attention.dispatch import (
    LONGEST_PLAIN,
    AttentionChoice,
    choose_attention,
    compute_capability_of,
    require_profiled,
)
from geneformer_jax.model.config import EncoderConfig, RuntimeConfig
from geneformer_jax.model.precision import Precision, precision_preset

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How to compute, as opposed to what: nothing here changes the mathematics.

    Attributes:
      precision: number formats, or the name of a preset such as "bfloat16".
      attention: name of the attention implementation.
      remat: what the backward pass recomputes instead of keeping, one of REMATS.
      constrain: applied to activations [B, T, D] after each block; fixes their sharding on a mesh.
    """

    precision: Precision | str = dataclasses.field(
        default_factory=lambda: precision_preset("float32")
    )
    attention: str = "xla"
    remat: str = "none"
    constrain: Callable[[jax.Array], jax.Array] = lambda x: x

    def __post_init__(self):
        if isinstance(self.precision, str):
            object.__setattr__(self, "precision", precision_preset(self.precision))


def profiled_runtime(longest: int, precision: str, attention: str) -> tuple[Runtime, str]:
    """Chooses how to compute where attention weights are read, which fused kernels never hold.

    Args:
      longest: tokens of the longest cell to come.
      precision: name of a precision preset.
      attention: one of `dispatch.PROFILED`, or "auto".

    Returns:
      (the runtime, a line that names what was chosen and why).

    Raises:
      InputError: an implementation that never holds its weights.
    """
    reason = "asked for"
    if attention == "auto":
        attention, why = _profiled_attention(longest)
        reason = f"{why}; fused kernels never hold their weights"
    require_profiled(attention)
    line = f"precision {precision}; attention {attention} ({reason})"
    return Runtime(precision_preset(precision), attention), line


def _profiled_attention(longest: int) -> tuple[str, str]:
    if jax.default_backend() == "cpu":
        return "by_head", "on a CPU"
    plain = longest <= LONGEST_PLAIN
    return "xla" if plain else "chunked", f"the longest cell has {longest:,} tokens"


def inference_runtime(
    config: EncoderConfig, longest: int, precision: str = "float32", attention: str = "auto"
) -> tuple[Runtime, str]:
    """Chooses how to compute on this machine.

    Args:
      config: shape of the model.
      longest: tokens of the longest cell to come.
      precision: name of a precision preset.
      attention: name of an attention implementation, or "auto".

    Returns:
      (the runtime, a line that names what was chosen and why).

    Raises:
      InputError: there is no such precision or attention, or it cannot run here.
    """
    preset = precision_preset(precision)
    devices = jax.local_devices()
    choice = _choose(attention, preset, config, devices[0], longest, inference=True)
    line = (
        f"devices: {len(devices)} x {devices[0].device_kind}; precision {precision}; "
        f"attention {choice.implementation} ({choice.reason})"
    )
    return Runtime(precision=preset, attention=choice.implementation), line


def _choose(
    attention: str,
    precision: Precision,
    encoder: EncoderConfig,
    device: jax.Device,
    longest: int,
    *,
    packed: bool = False,
    inference: bool = False,
) -> AttentionChoice:
    """Chooses attention for devices of one kind; in inference nothing is dropped."""
    return choose_attention(
        attention,
        platform=device.platform,
        compute_dtype=precision.compute,
        head_size=encoder.head_size,
        dropout_rate=0.0 if inference else encoder.attention_dropout,
        packed=packed,
        positions=longest,
        inference=inference,
        compute_capability=compute_capability_of(device),
    )


def make_runtime(
    config: RuntimeConfig, encoder: EncoderConfig, mesh: Mesh, longest: int, packed: bool = False
) -> tuple[Runtime, tuple[str, ...]]:
    """Returns how to compute on a mesh, and lines that name what was chosen and why.

    Args:
      config: what was asked for.
      encoder: shape of the model.
      mesh: devices.
      longest: tokens of the longest batch.
      packed: whether rows hold several cells.

    Raises:
      InputError: it cannot run there.
    """
    precision = precision_preset(config.precision)
    device = mesh.devices.flat[0]
    choice = _choose(config.attention, precision, encoder, device, longest, packed=packed)
    activations = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, None))
    runtime = Runtime(
        precision=precision,
        attention=choice.implementation,
        remat=config.remat,
        constrain=lambda x: jax.lax.with_sharding_constraint(x, activations),
    )
    return runtime, (f"attention: {choice.implementation} ({choice.reason})",)
