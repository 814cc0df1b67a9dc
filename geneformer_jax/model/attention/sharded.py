"""Attention on each device's own cells and heads, where XLA cannot cut a program up itself."""

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

_BATCH_AXES = ("data", "fsdp")
_HEAD_AXES = ("tensor",)


def on_each_shard(
    attend: Callable, q_BNTH: jax.Array, operands: tuple[tuple[str | None, ...], ...]
):
    """Returns `attend` on each device's shard of batch and heads, or as it is without a mesh.

    Args:
      attend: takes arrays that are split as `operands` says, and returns one like `q_BNTH`.
      q_BNTH: queries, of which the sizes decide what is split.
      operands: of each operand the dimensions that are "batch", "heads" or whole (None).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return attend
    axes = {
        "batch": _dividing_axes(mesh, _BATCH_AXES, q_BNTH.shape[0]),
        "heads": _dividing_axes(mesh, _HEAD_AXES, q_BNTH.shape[1]),
        None: None,
    }
    in_specs = tuple(PartitionSpec(*(axes[name] for name in names)) for names in operands)
    out_specs = PartitionSpec(axes["batch"], axes["heads"])
    return jax.shard_map(attend, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _dividing_axes(mesh, names: tuple[str, ...], size: int):
    """Returns the mesh axes that split a dimension of `size` evenly, else None: keep it whole."""
    names = tuple(name for name in names if name in mesh.shape)
    return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None
