"""Training steps per second: cells of full length, and of real lengths in buckets and packed."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from geneformer_jax.batches.config import DataConfig
from geneformer_jax.batches.loader import Batch
from geneformer_jax.model.config import EncoderConfig, MeshConfig, RuntimeConfig
from geneformer_jax.model.sharding import put_batch
from geneformer_jax.training.config import EvaluationConfig, OptimizerConfig, PretrainConfig
from geneformer_jax.training.dry_run.program import memory_of
from geneformer_jax.training.flops import peak_flops
from geneformer_jax.training.initial.start import start_state
from geneformer_jax.training.run import Run, prepare_run
from on_device.made_up import MadeUpCells, real_lengths
from on_device.sizes import Sizes
from on_device.stages import Row
from on_device.timing import rates, timed, warm_seconds

_AIMS = {"V1-10M": 0.25, "V2-104M": 0.40}
# As in the models' configurations: the larger one keeps products only.
_REMAT = {"V1-10M": "none", "V2-104M": "dots"}
_SECONDS = 5.0


def full_v1(sizes: Sizes) -> Iterator[Row]:
    """Yields V1-10M's steps on cells of full length."""
    yield _full("V1-10M", sizes.v1, sizes.full_rows[0], sizes)


def full_v2(sizes: Sizes) -> Iterator[Row]:
    """Yields V2-104M's steps on cells of full length."""
    yield _full("V2-104M", sizes.v2, sizes.full_rows[1], sizes)


def real_v1(sizes: Sizes) -> Iterator[Row]:
    """Yields V1-10M's steps on cells of real lengths, in buckets and packed."""
    yield from _real("V1-10M", sizes.v1, sizes)


def real_v2(sizes: Sizes) -> Iterator[Row]:
    """Yields V2-104M's steps on cells of real lengths, in buckets and packed."""
    yield from _real("V2-104M", sizes.v2, sizes)


def _full(name: str, encoder: EncoderConfig, rows: int, sizes: Sizes) -> Row:
    cells = MadeUpCells(np.full(rows, encoder.positions), encoder.vocabulary_size)
    run = _run(name, encoder, cells, sizes.precision, DataConfig(cells_per_batch=rows))
    what = f"{name}, {rows} x {encoder.positions:,} tokens"
    return {**_measured(what, run, sizes.steps), "aim_mfu": _AIMS[name]}


def _real(name: str, encoder: EncoderConfig, sizes: Sizes) -> Iterator[Row]:
    lengths = real_lengths(sizes.real_cells, encoder.positions)
    cells = MadeUpCells(lengths, encoder.vocabulary_size)
    for how, packing in (("in buckets", False), ("packed", True)):
        data = DataConfig(
            tokens_per_batch=sizes.row_tokens, max_buckets=sizes.max_buckets, packing=packing
        )
        run = _run(name, encoder, cells, sizes.precision, data)
        yield _measured(f"{name}, real lengths, {how}", run, 1)


def _run(
    name: str, encoder: EncoderConfig, cells: MadeUpCells, precision: str, data: DataConfig
) -> Run:
    """Returns an epoch over cells made ready as `pretrain` does it, on one device."""
    optimizer = OptimizerConfig(schedule="constant", warmup_steps=0)
    runtime = RuntimeConfig(precision, remat=_REMAT[name])
    config = PretrainConfig(
        dataclasses.asdict(encoder), data=data, optimizer=optimizer, mesh=MeshConfig(data=1),
        runtime=runtime, evaluation=EvaluationConfig(0), epochs=1,
    )  # fmt: skip
    return prepare_run(config, cells)


def _measured(name: str, run: Run, passes: int) -> Row:
    """Returns the speed of `passes` over all batches, which are made beforehand."""
    batches = [run.batches[step] for step in range(run.steps)]
    with jax.set_mesh(run.mesh):
        state = start_state(run)
        programs: dict[tuple[int, ...], Any] = {}
        compiling = timed(lambda: _compile(run, state, batches, programs))

        def train() -> None:
            nonlocal state
            for batch in batches * passes:
                on_device = put_batch(batch, run.mesh)
                state, _ = programs[batch.tokens_BT.shape](state, on_device)
            jax.block_until_ready(state)

        train()
        seconds = warm_seconds(train, _SECONDS)
    lengths, device = run.store.lengths, run.mesh.devices.flat[0]
    peak = peak_flops(device, run.config.runtime.precision)
    flops = run.flops(np.arange(len(lengths)))
    per_s = passes / np.median(seconds)
    padded = sum(batch.tokens_BT.size for batch in batches)
    return rates(
        name, "cells/s", passes * len(lengths), seconds,
        mfu=round(flops * per_s / peak, 4) if peak else None,
        tflops=round(flops * per_s / 1e12, 2),
        precision=run.config.runtime.precision,
        remat=run.config.runtime.remat,
        attention=run.runtime.attention,
        batches=run.shape.describe(),
        padding=round(1 - int(lengths.sum()) / padded, 3),
        gib=round(max(memory_of(each).peak for each in programs.values()) / 2**30, 2),
        compile_s=round(compiling, 1),
    )  # fmt: skip


def _compile(run: Run, state: Any, batches: list[Batch], programs: dict) -> None:
    for batch in batches:
        if (shape := batch.tokens_BT.shape) not in programs:
            on_device = put_batch(batch, run.mesh)
            programs[shape] = run.train_step.lower(state, on_device).compile()
