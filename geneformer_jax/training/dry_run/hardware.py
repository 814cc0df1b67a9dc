"""Hardware to compile for that need not be there: TPU slices and NVIDIA GPUs, by name.

JAX's compilers for both run on any machine once their wheels are installed, and give devices that
can be compiled for and nothing else.
"""

import importlib.util
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from geneformer_jax.common.errors import InputError, did_you_mean

# Dimensions of a chip's slices, and its memory in GiB.
_TPUS = {"v4": (3, 32), "v5e": (2, 16), "v5p": (3, 95), "v6e": (2, 32)}

# What XLA asks about a GPU, from its data sheet: memory in bytes, bytes/s and GHz included.
_GPUS = {
    "v100": {
        "core_count": 80,
        "fpus_per_core": 64,
        "clock_rate_ghz": 1.53,
        "memory_bandwidth": 898 * 10**9,
        "device_memory_size": 34_072_559_616,
        "l2_cache_size": 6 * 2**20,
        "shared_memory_per_core": 96 * 2**10,
        "shared_memory_per_block_optin": 96 * 2**10,
        "cuda_compute_capability": "{ major: 7 minor: 0 }",
    },
    "h100": {
        "core_count": 132,
        "fpus_per_core": 128,
        "clock_rate_ghz": 1.98,
        "memory_bandwidth": 3_352 * 10**9,
        "device_memory_size": 84_942_979_072,
        "l2_cache_size": 50 * 2**20,
        "shared_memory_per_core": 228 * 2**10,
        "shared_memory_per_block_optin": 227 * 2**10,
        "cuda_compute_capability": "{ major: 9 minor: 0 }",
    },
}
_GPU_NAMES = {"v100": "Tesla V100-SXM2-32GB", "h100": "NVIDIA H100 80GB HBM3"}
_ANY_GPU = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 * 2**10,
    "registers_per_core_limit": 65_536,
    "registers_per_block_limit": 65_536,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65_535,
    "block_dim_limit_z": 65_535,
}
# The last cuDNN that supports Volta, which the extra [volta] installs; newer chips take it too.
_CUDNN = "{ major: 9 minor: 10 patch: 2 }"
_CUDA_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
# Of a GPU's memory, what JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_GPU_MEMORY_FRACTION = 0.75
_EXAMPLES = "tpu:v5e:4x4 (chips) or cuda:h100:1x2x8 (slices x hosts x GPUs of a host)"


class Hardware(NamedTuple):
    """Hardware to compile for.

    Attributes:
      name: such as "tpu:v5e:16x16".
      devices: compile-only devices.
      memory: bytes that each device has.
      usable: bytes of it that a program may take.
      why_usable: why not all of it, for people, or "".
    """

    name: str
    devices: list[jax.Device]
    memory: int
    usable: int
    why_usable: str


def find_hardware(name: str) -> Hardware:
    """Returns the hardware that a name such as "tpu:v5e:16x16" or "cuda:v100:1x3x4" stands for.

    Args:
      name: platform, chip and topology: of a TPU slice its chips along each dimension, of GPUs
        slices x hosts x GPUs of a host (a slice being hosts that NVLink joins).

    Raises:
      InputError: there is no such hardware, or its compiler is not installed.
    """
    platform, _, rest = name.partition(":")
    chip, _, topology = rest.partition(":")
    if platform == "tpu":
        _require_chip(name, chip, tuple(_TPUS))
        dimensions, gib = _TPUS[chip]
        _require_sizes(name, topology, dimensions)
        memory = gib * 2**30
        return Hardware(name, _tpu_devices(name, chip, topology), memory, memory, "")
    if platform == "cuda":
        _require_chip(name, chip, tuple(_GPUS))
        _require_sizes(name, topology, 3)
        memory = _GPUS[chip]["device_memory_size"]
        fraction = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", _GPU_MEMORY_FRACTION))
        why = f" (XLA_PYTHON_CLIENT_MEM_FRACTION is {fraction})"
        return Hardware(
            name, _gpu_devices(name, chip, topology), memory, int(fraction * memory), why
        )
    raise InputError(f'`target`={name}: "{platform}" is neither tpu nor cuda; try {_EXAMPLES}')


def _require_chip(target: str, chip: str, known: tuple[str, ...]) -> None:
    if chip not in known:
        hint = did_you_mean(chip, known)
        raise InputError(
            f'`target`={target}: no chip "{chip}"{hint}; choose one of {", ".join(known)}'
        )


def _require_sizes(target: str, topology: str, count: int) -> None:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)" + f"{{{count - 1}}}", topology):
        raise InputError(
            f'`target`={target}: topology "{topology}" must be {count} numbers; try {_EXAMPLES}'
        )


def _tpu_devices(target: str, chip: str, topology: str) -> list[jax.Device]:
    if not _is_installed("libtpu"):
        raise InputError(
            f"`target`={target} needs the TPU compiler, which is not installed; "
            'pip install "geneformer_jax[aot]"'
        )
    # No machine of a TPU slice is there to be asked what it is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ["TPU_ACCELERATOR_TYPE"] = f"{chip}-1"
    # Compiling takes no chip, so that several processes may do it at a time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # The two cores of a v4 chip work as one device, as they do where JAX finds it.
    options = {"chip_config_name": "megacore"} if chip == "v4" else {}
    try:
        found = topologies.get_topology_desc(f"{chip}:{topology}", platform="tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise InputError(
            f"`target`={target} is no slice that exists ({_first_line(error)}); "
            "choose a topology that is sold"
        ) from error
    return list(found.devices)


def _gpu_devices(target: str, chip: str, topology: str) -> list[jax.Device]:
    if not any(_is_installed(plugin) for plugin in _CUDA_PLUGINS):
        raise InputError(
            f"`target`={target} needs the CUDA compiler, which is not installed; "
            'pip install "geneformer_jax[aot_cuda]"'
        )
    found = topologies.get_topology_desc(
        "", platform="cuda", target_config=_gpu_description(chip), topology=topology
    )
    return list(found.devices)


def _gpu_description(chip: str) -> str:
    """XLA's GpuTargetConfig of a chip, as a text proto."""
    fields = {**_ANY_GPU, **_GPUS[chip]}
    info = "\n".join(
        f"  {name} {value}" if str(value).startswith("{") else f"  {name}: {value}"
        for name, value in fields.items()
    )
    return (
        f'gpu_device_info {{\n{info}\n}}\nplatform_name: "CUDA"\ndnn_version_info {_CUDNN}\n'
        f'device_description_str: "{_GPU_NAMES[chip]}"\n'
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
