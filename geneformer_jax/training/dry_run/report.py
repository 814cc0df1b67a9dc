"""What a pretraining run would do and cost, without running it."""

import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from geneformer_jax.batches.loader import Batch
from geneformer_jax.batches.masking import Packing, masked_capacity
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.sharding import BATCH
from geneformer_jax.training.config import PretrainConfig
from geneformer_jax.training.dry_run.hardware import Hardware, find_hardware
from geneformer_jax.training.dry_run.program import Collectives, Memory, collectives_in, memory_of
from geneformer_jax.training.dry_run.synthetic_corpus import synthetic_corpus
from geneformer_jax.training.flops import ASSUMED_SPEED, Speed
from geneformer_jax.training.run import Run, open_store, prepare_run

_GIB = 2**30


class CompiledStep(NamedTuple):
    """The training step of one shape of batch, compiled for a target.

    Attributes:
      cells, bucket: the batch, over all devices.
      seconds: that compiling took.
      memory: on each device.
      collectives: by kind.
    """

    cells: int
    bucket: int
    seconds: float
    memory: Memory
    collectives: dict[str, Collectives]

    def lines(self, target: Hardware) -> list[str]:
        """Lines for people."""
        collectives = [
            f"  {kind}: {found.count:,} a step, {found.payload / 2**20:,.1f} MiB on each device"
            for kind, found in self.collectives.items()
        ]
        return [
            f"compiled for {target.name}: {self.cells:,} cells x {self.bucket:,} tokens "
            f"({self.seconds:.0f} s)",
            "  " + _memory_line(self.memory, target),
            *collectives,
        ]


def describe_dry_run(
    config: PretrainConfig,
    *,
    target: str = "",
    corpus: str = "",
    speed: Speed = ASSUMED_SPEED,
) -> Iterator[str]:
    """Yields lines on what `pretrain` would do and cost, having checked all that can be checked.

    Args:
      config: the whole run.
      target: hardware to compile the training step for, such as "cuda:v100:1x3x4" (see
        dry_run.hardware); empty to compile nothing and take the devices that are there.
      corpus: "CELLSxTOKENS" in place of a store.
      speed: of one device.

    Raises:
      InputError: the configuration cannot run, or its step does not fit the target's memory.
    """
    if corpus:
        store = synthetic_corpus(corpus, config.model.get("vocabulary_size", 0))
    else:
        store = open_store(config)
    hardware = find_hardware(target) if target else None
    run = prepare_run(config, store, hardware and hardware.devices)
    yield from run.summary(speed)
    if hardware:
        yield from _offload_note(run)
        for step in compile_steps(run, hardware):
            yield from step.lines(hardware)


def compile_steps(run: Run, target: Hardware) -> Iterator[CompiledStep]:
    """Compiles the training step for the batches that take the most memory.

    Args:
      run: made ready for the target's devices.
      target: the hardware.

    Raises:
      InputError: a step does not fit the devices' memory; with remedies.
    """
    for cells, bucket in _most_demanding(run):
        started = time.monotonic()
        program = _compile(run, target, cells, bucket)
        memory = memory_of(program)
        if memory.peak > target.usable:
            raise _refusal(run, target, f"{memory.peak / _GIB:.1f} GiB")
        seconds = time.monotonic() - started
        yield CompiledStep(cells, bucket, seconds, memory, collectives_in(program.as_text()))


def _most_demanding(run: Run) -> list[tuple[int, int]]:
    """The batch (rows, bucket) with the longest cells, and that with the most logits."""
    shapes = list(zip(run.shape.rows, run.shape.buckets, strict=True))
    selected = run.config.masking.selected_fraction
    most_logits = max(shapes, key=lambda shape: shape[0] * masked_capacity(shape[1], selected))
    return list(dict.fromkeys([shapes[-1], most_logits]))


def _offload_note(run: Run) -> Iterator[str]:
    """Yields a note where the compiler for absent devices knows no host memory (CUDA's)."""
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(run.abstract_state.optimizer)}
    if run.config.runtime.optimizer_on_host and "pinned_host" not in kinds:
        yield (
            "optimizer_on_host: not compiled, as the compiler knows no host memory for devices "
            "that are not there; below, the optimizer state is counted on the devices"
        )


def _compile(run: Run, target: Hardware, cells: int, bucket: int) -> jax.stages.Compiled:
    with jax.set_mesh(run.mesh):
        lowered = run.train_step.lower(run.abstract_state, abstract_batch(run, cells, bucket))
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise _out_of_memory(run, target, error) from error


def abstract_batch(run: Run, cells: int, bucket: int) -> Batch:
    """Returns the shapes, types and shardings of a batch of so many cells of so many tokens."""
    sharding = NamedSharding(run.mesh, BATCH)

    def array(*shape: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    B, T = cells, bucket
    M = masked_capacity(T, run.config.masking.selected_fraction)
    masked = not run.config.masks_on_device
    packed = run.config.data.packing
    # Packed rows list as many cells as the fullest row of the plan holds.
    rows = run.batches.plan.step(0).cells.shape[1:] if packed else ()
    return Batch(
        tokens_BT=array(B, T),
        lengths_B=array(B),
        positions_BM=array(B, M) if masked else None,
        targets_BM=array(B, M) if masked else None,
        weights_BM=array(B, M, dtype=np.float32) if masked else None,
        cells_B=array(B, *rows),
        packing=Packing(array(B, T), array(B, T)) if packed else None,
    )


def _memory_line(memory: Memory, target: Hardware) -> str:
    line = (
        f"on each device: arguments {memory.arguments / _GIB:.3f} GiB, temporaries "
        f"{memory.temporaries / _GIB:.3f} GiB, peak {memory.peak / _GIB:.3f} GiB of "
        f"{target.memory / _GIB:.1f} GiB"
    )
    return line + (f"; in host memory {memory.host / _GIB:.3f} GiB" if memory.host else "")


def _out_of_memory(run: Run, target: Hardware, error: Exception) -> Exception:
    """The TPU compiler itself refuses what does not fit; other failures pass as they are."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        return error
    needed = re.search(r"\(([\d.]+)([MGT])\) exceeds", str(error))
    return _refusal(run, target, f"{needed[1]} {needed[2]}iB" if needed else "more than there is")


def _refusal(run: Run, target: Hardware, needed: str) -> InputError:
    runtime, data, mesh = run.config.runtime, run.config.data, run.config.mesh
    batch = "tokens_per_batch" if data.tokens_per_batch else "cells_per_batch"
    remedies = [
        f"`config.data.{batch}` below {getattr(data, batch):,}",
        f"`config.runtime.micro_batches`={2 * runtime.micro_batches}",
    ]
    if runtime.remat != "full":
        remedies.append("`config.runtime.remat`=full")
    if runtime.precision == "float32":
        remedies.append("16-bit `config.runtime.precision`")
    remedies.append(f"`config.mesh.fsdp`={2 * mesh.fsdp} or more devices")
    return InputError(
        f"the training step does not fit {target.name}: it takes {needed} on each device, of which "
        f"{target.usable / _GIB:.1f} GiB of {target.memory / _GIB:.1f} GiB can be used"
        f"{target.why_usable}; try {', '.join(remedies)}"
    )
