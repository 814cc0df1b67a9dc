"""The device mesh, and where every array lives on it.

Two tables decide: parameter path -> logical axes, and logical axis -> mesh axis. The optimizer's
moments have the same paths below their own, so the same tables place them. This takes the place of
the original's DeepSpeed partitioning.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.threads import cores
from geneformer_jax.model import no_tpu  # noqa: F401 (it acts as it is imported)
from geneformer_jax.model.config import MeshConfig

AXES = ("data", "fsdp", "tensor")
_LANES = 128
BATCH = PartitionSpec(("data", "fsdp"))

# Embedding tables stay whole along the model width: sharding them there makes XLA rematerialise
# them on some meshes, and they are small.
_BLOCK_AXES = (
    (r"(query|key|value)/kernel", ("width", "heads", None)),
    (r"(query|key|value)/bias", ("heads", None)),
    (r"attention_output/kernel", ("heads", None, "width")),
    (r"up/kernel", ("width", "feed_forward")),
    (r"up/bias", ("feed_forward",)),
    (r"down/kernel", ("feed_forward", "width")),
    (r"(attention_output|down)/bias", (None,)),
    (r"(attention|output)_norm/(scale|bias)", (None,)),
)
_LORA_AXES = (
    (r"(query|key|value|up)/into/kernel", ("width", None)),
    (r"attention_output/into/kernel", ("heads", None, None)),
    (r"down/into/kernel", ("feed_forward", None)),
    (r"(query|key|value)/out/kernel", (None, "heads", None)),
    (r"up/out/kernel", (None, "feed_forward")),
    (r"(attention_output|down)/out/kernel", (None, "width")),
)
_LOGICAL_AXES = (
    (r"embeddings/word/embedding", ("vocabulary", None)),
    (r"embeddings/(position|token_type)/embedding", (None, None)),
    (r"embeddings/norm/(scale|bias)", (None,)),
    *((f"blocks/{name}", (None, *axes)) for name, axes in _BLOCK_AXES),
    *((f"lora/{name}", (None, *axes)) for name, axes in _LORA_AXES),
    (r"masked_gene_head/transform/kernel", ("width", None)),
    (r"masked_gene_head/(transform|norm)/(scale|bias)", (None,)),
    (r"masked_gene_head/bias", ("vocabulary",)),
    (r"(cell|gene)_classifier/(pooler|scores|classifier)/kernel", ("width", None)),
    (r"(cell|gene)_classifier/(pooler|classifier)/bias", (None,)),
    *((f"(cell|gene)_classifier/extra_layer/{name}", axes) for name, axes in _BLOCK_AXES),
    # Muon keeps the coefficients of its iteration beside its moments.
    (r"ns_coeffs", (None,)),
)
_MESH_AXES = {
    "vocabulary": "tensor",
    "width": "fsdp",
    "heads": "tensor",
    "feed_forward": "tensor",
    None: None,
}

REPLICATED = PartitionSpec()


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with axes ("data", "fsdp", "tensor").

    With `config.data` 0 it takes all devices; otherwise the first data x fsdp x tensor of them.

    Raises:
      InputError: there are too few devices, or some cannot be used.
    """
    devices = jax.devices() if devices is None else devices
    inner = config.fsdp * config.tensor
    data = config.data or len(devices) // inner
    needed, at_hand = data * inner, len(devices)
    if not 0 < needed <= at_hand or (needed < at_hand and not config.data):
        raise InputError(
            f"`config.mesh` data {config.data or 'rest'} x fsdp {config.fsdp} x tensor "
            f"{config.tensor} cannot be laid out on the {at_hand} devices at hand; choose fsdp x "
            f"tensor that divides {at_hand}, or a product of at most {at_hand}"
        )
    processes = {device.process_index for device in devices}
    if needed < at_hand and len(processes) > 1:
        raise InputError(
            f"`config.mesh` uses {needed} of {at_hand} devices, but a run of several processes "
            "must use all; set mesh.data to 0"
        )
    shape = (data, config.fsdp, config.tensor)
    # Not jax.make_mesh: it refuses GPUs of several nodes, and on most TPU slices any axes but
    # those of the slice itself.
    laid_out = create_device_mesh(shape, devices[:needed], allow_split_physical_axes=True)
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * 3)


def batch_divisor(mesh: Mesh) -> int:
    """Number of devices that share the cells of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Returns a NamedSharding for every array of `tree` (weights, or a whole train state).

    Scalars are on every device. A dimension that its mesh axis does not divide stays whole.

    Raises:
      ValueError: an array's path is in no row of the table, a defect of ours.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(mesh, _name(path), leaf.shape)), tree
    )


def _name(path: tuple[Any, ...]) -> str:
    parts = (getattr(key, "key", getattr(key, "name", None)) for key in path)
    return "/".join(str(part) for part in parts if part is not None)


def _spec(mesh: Mesh, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    if not shape:
        return PartitionSpec()
    axes = (_MESH_AXES[axis] for axis in _logical_axes(name, shape))
    return PartitionSpec(
        *(
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        )
    )


def _logical_axes(name: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
    for pattern, logical in _LOGICAL_AXES:
        if re.search(f"(^|/){pattern}$", name):
            return logical
    raise ValueError(f"no sharding rule for {name} of shape {shape}: add a row to the table")


def vocabulary_rows(mesh: Mesh, size: int) -> int:
    """Returns the rows, one a token, that a table is to have on a mesh.

    That is `size`, unless the tensor axis does not divide it: then as many more as give each device
    whole vector lanes. Without them an odd vocabulary, and its logits, would be whole everywhere.
    """
    tensor = mesh.shape["tensor"]
    return size if size % tensor == 0 else -(-size // (_LANES * tensor)) * _LANES * tensor


def resize_vocabulary(tree: Any, rows: int) -> Any:
    """Cuts, or pads with zeros, all arrays that have a row for each token, to a number of rows."""

    def resize(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if not leaf.ndim or "vocabulary" not in _logical_axes(_name(path), leaf.shape):
            return leaf
        # A table has its tokens along the first axis.
        if len(leaf) >= rows:
            return leaf[:rows]
        return jnp.pad(leaf, [(0, rows - len(leaf))] + [(0, 0)] * (leaf.ndim - 1))

    return jax.tree_util.tree_map_with_path(resize, tree)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts the rows that this process read onto its devices, as parts of the global batch."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def use_all_cores() -> None:
    """Makes each core of a CPU a device; to be called before JAX computes anything.

    Each core then has cells of its own, in its own caches, which took two cores a fifth to a third
    less time than sharing each product. Left alone is what the user set, by JAX_NUM_CPU_DEVICES or
    XLA_FLAGS. Other kinds of devices are not affected.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices < 0 and not chosen:
        jax.config.update("jax_num_cpu_devices", cores())


def inference_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh that shares cells between devices, all of this process by default."""
    return make_mesh(MeshConfig(), jax.local_devices() if devices is None else devices)
