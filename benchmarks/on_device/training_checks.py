"""Training on this device: packing, loss scaling, the optimizer's state on the host, precisions."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from geneformer_jax.batches.config import MaskingConfig
from geneformer_jax.batches.loader import Batch, mask_batch, pack_cells, pad_cells
from geneformer_jax.model.attention.dispatch import IMPLEMENTATIONS
from geneformer_jax.model.config import EncoderConfig, MeshConfig, RuntimeConfig
from geneformer_jax.model.encoder import init_params
from geneformer_jax.model.runtime import Runtime, make_runtime
from geneformer_jax.model.sharding import make_mesh, put_batch
from geneformer_jax.training.config import OptimizerConfig
from geneformer_jax.training.objectives.masked_genes import masked_gene_sums
from geneformer_jax.training.optimizer import make_optimizer
from geneformer_jax.training.state import (
    INITIAL_SCALE,
    Recipe,
    TrainState,
    abstract_state,
    init_state,
    jit_train_step,
)
from on_device.made_up import CommonGenes, made_up_vocabulary
from on_device.sizes import Sizes
from on_device.stages import Row
from on_device.verdicts import attempt, largest, largest_of, verdict
from tests.helpers.tolerances import FIRST_STEPS, GRADIENTS, LOSS

_VOCABULARY, _CELLS = 512, 8
# Heads of the published size, which kernels are made for.
_MODEL = EncoderConfig(_VOCABULARY, 2, 128, 2, 256, 640, dropout=0.0, attention_dropout=0.0)
# Model and optimizer as in the test whose bounds hold for losses here.
_LEARNING = EncoderConfig(_VOCABULARY, 2, 32, 4, 64, 64, dropout=0.1, attention_dropout=0.0)
_OPTIMIZER = OptimizerConfig(
    learning_rate=3e-3, schedule="cosine", warmup_steps=20, weight_decay=0.01
)
_HALF = (
    ("float16", "chunked"),
    ("float16", "cudnn"),
    ("bfloat16", "xla"),
    ("bfloat16", "cudnn"),
    ("bfloat16", "splash"),
)
_OVERFLOWING = 2.0**100


def check_packing(sizes: Sizes) -> Iterator[Row]:
    """Yields whether packed cells learn what cells alone learn on the host."""
    alone, packed = _plain_batches()
    params = jax.device_get(init_params(_MODEL, jax.random.key(0)))
    with jax.default_device(jax.devices("cpu")[0]):
        expected, loss = _gradients(params, alone, Runtime())
    for name in IMPLEMENTATIONS:
        row = f"packed rows, {name} float32"

        def compare(name=name, row=row) -> Row:
            got, packed_loss = _gradients(params, packed, _runtime("float32", name, packed=True))
            errors = {
                "loss": abs(packed_loss / loss - 1),
                "gradients": largest_of(jax.tree.leaves(got), jax.tree.leaves(expected)),
            }
            return verdict(row, errors, {"loss": LOSS, "gradients": GRADIENTS})

        yield attempt(row, compare)


def check_state(sizes: Sizes) -> Iterator[Row]:
    """Yields whether scaled losses and an optimizer on the host do what they must."""
    batch = _plain_batches()[0]
    for name, compare in (
        ("optimizer on the host, 2 steps", _compare_on_host),
        ("loss scaling, float16", _compare_scaling),
    ):
        yield attempt(name, functools.partial(compare, name, batch))


def _compare_on_host(name: str, batch: Batch) -> Row:
    recipe = _recipe(_MODEL, "float32", "xla")
    on_device, _ = _steps(recipe, [batch] * 2)
    on_host, _ = _steps(dataclasses.replace(recipe, optimizer_on_host=True), [batch] * 2)
    errors = {
        "moments": largest_of(_moments(on_host), _moments(on_device)),
        "moments not in pinned memory": sum(
            leaf.sharding.memory_kind != "pinned_host" for leaf in _moments(on_host)
        ),
    }
    bounds = {"moments": GRADIENTS, "moments not in pinned memory": 0}
    return verdict(name, errors, bounds)


def _compare_scaling(name: str, batch: Batch) -> Row:
    recipe = _recipe(_MODEL, "float16", "xla")
    good, metrics = _steps(recipe, [batch])
    huge = good._replace(loss_scale=good.loss_scale._replace(scale=jnp.float32(_OVERFLOWING)))
    before = jax.device_get(huge)
    after, skipped = _steps(recipe, [batch], huge)
    kept = [(tree.params, tree.optimizer) for tree in (jax.device_get(after), before)]
    errors = {
        "scale of a good step": abs(float(metrics[0].loss_scale) / INITIAL_SCALE - 1),
        "good steps": abs(int(before.loss_scale.good_steps) - 1),
        "scale after an overflow": abs(float(after.loss_scale.scale) * 2 / _OVERFLOWING - 1),
        "skipped": abs(int(skipped[0].skipped_updates) - 1),
        "what an overflow changed": largest_of(*map(jax.tree.leaves, kept)),
    }
    return verdict(name, errors, 0.0)


def check_precisions(sizes: Sizes) -> Iterator[Row]:
    """Yields how far losses in half precision are from those in float32 on the host."""
    model = _LEARNING
    cells = CommonGenes(np.full(_CELLS * sizes.curve_steps, model.positions), _VOCABULARY)
    numbers = np.arange(len(cells)).reshape(-1, _CELLS)
    batches = [_masked(_alone(cells.read(each), each), step) for step, each in enumerate(numbers)]
    plain = _recipe(model, "float32", "xla")
    expected = _curve(plain, batches, jax.devices("cpu")[0])
    row = {"first": expected[0], "last": expected[-1]}
    # Adam makes differences grow: of float32 itself there is nothing to be asked.
    row["largest difference here"] = largest(_curve(plain, batches), expected)
    yield {"name": f"losses of {sizes.curve_steps} steps, float32 on the host", **row}
    for precision, name in _HALF:
        row = f"losses of {sizes.curve_steps} steps, {name} {precision}"

        def compare(precision=precision, name=name, row=row) -> Row:
            losses = _curve(_recipe(model, precision, name), batches)
            return verdict(row, {"loss": largest(losses, expected)}, FIRST_STEPS[precision])

        yield attempt(row, compare)


def _curve(recipe: Recipe, batches: list[Batch], device: jax.Device | None = None) -> list[float]:
    _, metrics = _steps(recipe, batches, device=device)
    return [float(each.loss) for each in metrics]


def _steps(
    recipe: Recipe,
    batches: list[Batch],
    state: TrainState | None = None,
    device: jax.Device | None = None,
) -> tuple[TrainState, list]:
    """Returns the state and the metrics of steps, on the first device unless told."""
    mesh, start, step = _compiled(recipe, device or jax.devices()[0])
    with jax.set_mesh(mesh):
        state, metrics = start() if state is None else state, []
        for batch in batches:
            state, measured = step(state, put_batch(batch, mesh))
            metrics.append(jax.device_get(measured))
    return state, metrics


@functools.cache
def _compiled(recipe: Recipe, device: jax.Device) -> tuple[Mesh, Callable[[], TrainState], Any]:
    """Returns (mesh, what makes the state before the first step, the step), compiled once."""
    mesh = make_mesh(MeshConfig(), [device])
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(recipe, mesh))
    start = jax.jit(lambda: init_state(recipe), out_shardings=placed)
    return mesh, start, jit_train_step(recipe, mesh)


def _recipe(model: EncoderConfig, precision: str, attention: str) -> Recipe:
    return Recipe(model, make_optimizer(_OPTIMIZER, 20), _runtime(precision, attention), seed=0)


def _runtime(precision: str, attention: str, packed: bool = False) -> Runtime:
    """Returns how to compute on the first device; raises InputError where that cannot be."""
    config = RuntimeConfig(precision=precision, attention=attention)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    runtime, _ = make_runtime(config, _MODEL, mesh, _MODEL.positions, packed)
    # As it is, activations are fixed to the mesh of that device.
    return dataclasses.replace(runtime, constrain=Runtime().constrain)


def _moments(state: TrainState) -> list[jax.Array]:
    """Returns Adam's first moments: the gradients, where an update would hide differences."""
    return jax.tree.leaves(state.optimizer[1][0].mu)


@functools.partial(jax.jit, static_argnums=2)
def _gradients(params, batch: Batch, runtime: Runtime):
    def loss(params):
        sums = masked_gene_sums(_MODEL, params, batch, runtime)
        return sums.loss / sums.targets

    value, gradients = jax.value_and_grad(loss)(params)
    return gradients, value


def _plain_batches() -> tuple[Batch, Batch]:
    """Returns the same masked cells, (one a row, packed into rows of which one is empty)."""
    lengths = np.random.default_rng(0).integers(8, 160, 2 * _CELLS)
    numbers = np.arange(len(lengths), dtype=np.int32)
    cells = CommonGenes(lengths, _VOCABULARY).read(numbers)
    rows = np.minimum(numbers // 2, _CELLS - 2)
    cells_BC = np.full((_CELLS, 4), -1, np.int32)
    for row in range(_CELLS - 1):
        cells_BC[row, : (rows == row).sum()] = numbers[rows == row]
    # The last row with cells has four.
    shape = _CELLS, 4 * 160
    tokens_BT, lengths_B, packing = pack_cells(cells, rows, shape, 0)
    packed = Batch(tokens_BT, lengths_B, None, None, None, cells_BC, packing)
    return _masked(_alone(cells, numbers)), _masked(packed)


def _alone(cells: list[np.ndarray], numbers: np.ndarray) -> Batch:
    lengths_B = np.array([len(cell) for cell in cells], np.int32)
    longest = -(-int(lengths_B.max()) // 64) * 64
    numbers = numbers.astype(np.int32)
    return Batch(pad_cells(cells, longest, 0), lengths_B, None, None, None, numbers)


def _masked(batch: Batch, step: int = 0) -> Batch:
    vocabulary = made_up_vocabulary(_VOCABULARY)
    return mask_batch(batch, seed=0, step=step, config=MaskingConfig(), vocabulary=vocabulary)
