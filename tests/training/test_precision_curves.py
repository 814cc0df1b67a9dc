"""Half precision learns what float32 learns: loss curves on real cells beside each other.

The bounds come from measurement, see `Precision: 200 steps` in benchmarks/LOG.md.
"""

import numpy as np
import pytest

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.store.builder import StoreBuild
from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.training.api import pretrain
from geneformer_jax.training.config import pretrain_config, typed_config
from geneformer_jax.training.telemetry import read_metrics
from tests.helpers.tolerances import FIRST_STEPS

# Dropout as in all precisions; none of attention, as fused kernels have none.
MODEL = EncoderConfig(1, 2, 32, 4, 64, 64, dropout=0.1, attention_dropout=0.0)
RECIPE = {
    "data.cells_per_batch": 8,
    "data.max_buckets": 1,
    "mesh.data": 1,
    "optimizer.learning_rate": 3e-3,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 20,
    "optimizer.weight_decay": 0.01,
    "evaluation.held_out_cells": 0,
    "log_every_steps": 1,
}
HALF = {"float16": "chunked", "bfloat16": "xla"}


@pytest.fixture(scope="module")
def real_cells(data_dir, tmp_path_factory):
    """The 64 highest ranked genes of each cell of pbmc3k, as V1 tokens."""
    folder = tmp_path_factory.mktemp("pbmc3k") / "store"
    vocabulary = read_original_vocabulary(data_dir / "dictionaries" / "v1_gc30M")
    build = StoreBuild(folder, vocabulary, TokenizerOptions(max_length=64), CountOptions(), ())
    build.survey([data_dir / "cells" / "pbmc3k.h5ad"])
    build.write()
    build.finish({})
    return folder


@pytest.fixture(scope="module")
def losses(real_cells, tmp_path_factory):
    """Returns the loss of each step, and updates skipped, by precision, attention and steps."""
    made: dict[tuple[str, str, int], tuple[np.ndarray, int]] = {}

    def curve(precision: str, attention: str, steps: int) -> tuple[np.ndarray, int]:
        key = precision, attention, steps
        if key not in made:
            config = pretrain_config(MODEL, vocabulary_size=0)
            config.update_from_flattened_dict(RECIPE)
            config.data.store, config.steps = str(real_cells), steps
            config.runtime.precision, config.runtime.attention = precision, attention
            workdir = tmp_path_factory.mktemp("curve") / "run"
            pretrain(typed_config(config), workdir)
            rows = read_metrics(workdir)
            made[key] = np.array([row["loss"] for row in rows]), rows[-1]["skipped_updates"]
        return made[key]

    return curve


@pytest.mark.slow
@pytest.mark.reference_data
@pytest.mark.parametrize(("precision", "bound"), FIRST_STEPS.items())
def test_half_precision_starts_as_float32_does(losses, precision, bound):
    expected, _ = losses("float32", "xla", 20)
    ours, skipped = losses(precision, HALF[precision], 20)
    assert expected[0] - expected[-1] > 0.1, "nothing was learnt, so nothing was compared"
    assert 0 < np.abs(ours - expected).max() < bound
    assert skipped == 0


@pytest.mark.slow
@pytest.mark.reference_data
@pytest.mark.parametrize("precision", HALF)
def test_half_precision_learns_what_float32_learns_in_200_steps(losses, precision):
    expected, _ = losses("float32", "xla", 200)
    ours, _ = losses(precision, HALF[precision], 200)
    assert expected[:10].mean() - expected[-50:].mean() > 1.5
    assert np.abs(ours - expected).max() < 0.1
    assert abs((ours - expected)[-50:].mean()) < 0.02
