"""Deletions on this device beside the host's, and a screen beside exact deletions."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import inference_runtime
from geneformer_jax.perturbation.config import PerturbationOptions
from geneformer_jax.perturbation.engine.encoding import ForwardSpec
from geneformer_jax.perturbation.engine.engine import Engine
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.engine.plan import EditPlan
from geneformer_jax.perturbation.engine.screening.screener import Reranker, Screener
from geneformer_jax.perturbation.prepare import make_plan, make_spec, resolve_edits
from geneformer_jax.perturbation.statistics.accuracy.screen_accuracy import spearman
from on_device.made_up import MadeUpCells, random_model
from on_device.sizes import Sizes
from on_device.stages import Row
from on_device.verdicts import largest, verdict
from tests.helpers.tolerances import SHIFTS

_MODEL = EncoderConfig(512, 3, 128, 2, 256, 192)
_LENGTHS = (192, 64, 2, 131)
_LEAST_SPEARMAN = 0.9


def check(sizes: Sizes) -> Iterator[Row]:
    """Yields whether shifts are the host's, and how far estimates are from exact shifts."""
    model, devices = random_model(_MODEL), jax.devices()[:1]
    cells = MadeUpCells(np.array(_LENGTHS), _MODEL.vocabulary_size)
    here = all_deletions(model, cells, devices)
    on_host = all_deletions(model, cells, jax.devices("cpu")[:1])
    exact, expected = (_values(Perturber, *each) for each in (here, on_host))
    yield verdict("exact deletions, float32", {"shifts": largest(exact, expected)}, SHIFTS)
    estimates, on_host = (_values(Screener, *each) for each in (here, on_host))
    yield verdict("screen, float32", {"estimates": largest(estimates, on_host)}, SHIFTS)
    everywhere = _values(Screener, *here, split_points=_MODEL.positions)
    rerankings = _values(Reranker, *here)
    # Behind the shifts stands the part of each that comes from the genes that move up.
    errors = {"reranking": largest(everywhere[:, 1], rerankings[:, 0])}
    yield verdict("screen with all split points beside exact passes, float32", errors, SHIFTS)
    correlation = spearman(exact[:, -1], estimates[:, 0])
    errors = {"1 - Spearman": 1 - correlation}
    yield verdict("screen beside exact deletions", errors, 1 - _LEAST_SPEARMAN)
    for precision in ("bfloat16", "float16"):
        runtime = inference_runtime(model.config, max(_LENGTHS), precision)[0]
        found = _values(Perturber, *all_deletions(model, cells, devices, precision))
        yield {
            "name": f"exact deletions, {precision} beside float32 on the host",
            "attention": runtime.attention,
            "spearman": spearman(expected[:, -1], found[:, -1]),
            "largest difference": largest(found, expected),
        }


def all_deletions(
    model: PretrainedModel,
    cells: MadeUpCells,
    devices: list[jax.Device] | None = None,
    precision: str = "float32",
) -> tuple[PretrainedModel, EditPlan, ForwardSpec, np.ndarray]:
    """Returns (model, plan, spec, states) of all single deletions in cells, with one goal state."""
    options = PerturbationOptions()
    runtime = inference_runtime(model.config, int(cells.lengths.max()), precision)[0]
    spec = make_spec(model, options, devices)
    spec = dataclasses.replace(spec, runtime=runtime, states=("goal",))
    plan = make_plan(cells, options, spec, *resolve_edits(model, options))
    state = np.random.default_rng(1).normal(size=(1, model.config.width))
    return model, plan, spec, (state / np.linalg.norm(state)).astype(np.float32)


def _values(kind: type[Engine], model, plan, spec, states, **options) -> np.ndarray:
    made = kind(model, plan, spec, states, **options).shifts(0, plan.edits)
    # Cells are padded otherwise on other devices, and then come in another order.
    return made.values_EM[np.argsort(made.numbers)]
