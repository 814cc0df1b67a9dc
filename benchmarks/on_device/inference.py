"""Cells embedded, genes deleted, deletions estimated and heads read off, per second."""

from collections.abc import Iterator

import jax
import numpy as np

from geneformer_jax.attention_analysis.cell_groups import CellGroups
from geneformer_jax.attention_analysis.extractor import AttentionExtractor
from geneformer_jax.batches.buckets import BatchShape
from geneformer_jax.common.progress import Progress
from geneformer_jax.embedding.embedder import Embedder
from geneformer_jax.inference.batches import encoding_flops
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.runtime import inference_runtime, profiled_runtime
from geneformer_jax.perturbation.engine.engine import place_weights
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.engine.screening.screener import Screener
from geneformer_jax.training.flops import peak_flops
from on_device.made_up import MadeUpCells, random_model, real_lengths
from on_device.perturbation_checks import all_deletions
from on_device.sizes import Sizes
from on_device.stages import Row
from on_device.timing import rates, timed, warm_seconds

# Cells per second of nano-Geneformer on one A100 with 80 GB, from its README of 2026-07: other
# cells, human pancreas, whose lengths it does not state.
PUBLISHED_ON_A100 = {"V1-10M": 4_295, "V2-104M": 705.5, "V2-316M": 277.5}
_SECONDS = 8.0


def embed_v1(sizes: Sizes) -> Iterator[Row]:
    """Yields how fast V1-10M embeds."""
    yield from _embed("V1-10M", sizes.v1, sizes)


def embed_v2(sizes: Sizes) -> Iterator[Row]:
    """Yields how fast V2-104M embeds."""
    yield from _embed("V2-104M", sizes.v2, sizes)


def embed_large(sizes: Sizes) -> Iterator[Row]:
    """Yields how fast V2-316M embeds."""
    yield from _embed("V2-316M", sizes.large, sizes)


def _embed(name: str, config: EncoderConfig, sizes: Sizes) -> Iterator[Row]:
    lengths = real_lengths(sizes.embedded, config.positions)
    cells = MadeUpCells(lengths, config.vocabulary_size)
    runtime = inference_runtime(config, config.positions, sizes.precision)[0]
    embedder = Embedder(random_model(config), cells, runtime=runtime, devices=jax.devices()[:1])
    buckets = embedder.layout.shape.buckets
    shape = BatchShape(buckets, (sizes.embedded_batch,) * len(buckets))
    embedder.layout = embedder.layout._replace(shape=shape)

    def run() -> None:
        with embedder.progress() as progress:
            embedder.rows(0, len(cells), progress)

    whole = timed(run)
    counted, compiling = embedder.throughput, embedder.throughput.compiling
    peak = peak_flops(jax.devices()[0], sizes.precision)
    # Stops below the last layer, as `embed` does by default.
    flops = encoding_flops(config, lengths).sum() * (config.layers - 1) / config.layers
    facts = {
        "precision": sizes.precision,
        "attention": runtime.attention,
        "buckets": buckets,
        "batch": sizes.embedded_batch,
        "padding": round(1 - counted.tokens / counted.padded, 3),
        "compile_s": round(compiling, 1),
        "times_published_on_A100": None,
    }
    # The first pass stands in for the others where these do not come to an end.
    for seconds in ([whole - compiling], None):
        seconds = seconds or warm_seconds(run, _SECONDS, repeats=3)
        row = rates(f"{name}, {len(cells):,} cells", "cells/s", len(cells), seconds, **facts)
        row["mfu"] = round(row["median"] * flops / len(cells) / peak, 4) if peak else None
        row["times_published_on_A100"] = round(row["median"] / PUBLISHED_ON_A100[name], 2)
        yield row


def delete(sizes: Sizes) -> Iterator[Row]:
    """Yields how many deletions are made exactly, and estimated, in cells of full length."""
    config = sizes.v1
    lengths = np.full(sizes.screened_cells, config.positions)
    cells = MadeUpCells(lengths, config.vocabulary_size)
    model, plan, spec, states = all_deletions(
        random_model(config), cells, jax.devices()[:1], sizes.precision
    )
    given = place_weights(model, spec), plan, spec, states
    facts = {"precision": sizes.precision, "attention": spec.runtime.attention}
    for what, kind, edits, aim in (
        ("exact", Perturber, min(sizes.exact_edits, plan.edits), 5_000),
        ("screen", Screener, plan.edits, 100_000),
    ):
        engine = kind(*given)

        def run(engine=engine, edits=edits) -> None:
            engine.shifts(0, edits)

        run()
        seconds = warm_seconds(run, _SECONDS)
        name = f"V1-10M, {what}, {config.positions:,} genes"
        compiling = round(engine.throughput.compiling, 1)
        yield rates(name, "edits/s", edits, seconds, aim=aim, compile_s=compiling, **facts)


def read_heads(sizes: Sizes) -> Iterator[Row]:
    """Yields how fast what heads attend to is read off cells of full length."""
    config = sizes.v1
    cells = MadeUpCells(np.full(sizes.profiled_cells, config.positions), config.vocabulary_size)
    runtime = profiled_runtime(config.positions, sizes.precision, "auto")[0]
    groups = CellGroups(("all",), np.zeros(len(cells), np.int32))
    extractor = AttentionExtractor(
        random_model(config), cells, groups, runtime=runtime, devices=jax.devices()[:1]
    )

    def run() -> None:
        with Progress(len(cells), "attend", "cells") as progress:
            extractor.run(0, len(cells), progress)

    run()
    name = f"V1-10M, heads of {config.positions:,} genes"
    facts = {"precision": sizes.precision, "attention": runtime.attention}
    facts["compile_s"] = round(extractor.throughput.compiling, 1)
    yield rates(name, "cells/s", len(cells), warm_seconds(run, _SECONDS), **facts)
