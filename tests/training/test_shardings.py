"""Where each weight lives on each mesh, and which collectives a compiled step holds there.

The golden file lists, for two published models, every weight's mesh axes on four meshes of eight
devices ("." where a dimension stays whole). If the test fails and that was not intended, it is a
defect. If it was, write the file anew and look at the difference before committing it:

  python -m tests.training.test_shardings
"""

import json
import os
from pathlib import Path

if __name__ == "__main__":  # under pytest conftest.py does this
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import pytest

from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.training.config import pretrain_config, typed_config
from geneformer_jax.training.dry_run.program import Collectives, collectives_in, memory_of
from geneformer_jax.training.dry_run.report import abstract_batch
from geneformer_jax.training.dry_run.synthetic_corpus import synthetic_corpus
from geneformer_jax.training.flops import bytes_per_device
from geneformer_jax.training.run import prepare_run

GOLDEN = Path(__file__).with_name("shardings.json")
MODELS = ("v1_10m", "v2_104m")
MESHES = ((8, 1, 1), (1, 8, 1), (2, 1, 4), (2, 2, 2))


def run_on(mesh: tuple[int, int, int], model: str | EncoderConfig, cells: int = 8, **changes):
    """A run of a model on made-up cells of its full length, ready for a mesh."""
    config = pretrain_config(model)
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = mesh
    config.data.cells_per_batch = cells
    config.evaluation.held_out_cells = 0
    config.update_from_flattened_dict(changes)
    positions, vocabulary = config.model.positions, config.model.vocabulary_size
    return prepare_run(typed_config(config), synthetic_corpus(f"1024x{positions}", vocabulary))


def state_of(model: str, mesh: tuple[int, int, int]):
    return run_on(mesh, model).abstract_state


def current_shardings() -> dict:
    """{model: {path of a weight: {"data,fsdp,tensor" of the mesh: mesh axis of each dimension}}}"""
    table: dict = {}
    for model in MODELS:
        for mesh in MESHES:
            params = state_of(model, mesh).params
            for path, leaf in jax.tree_util.tree_leaves_with_path(params):
                name = "/".join(key.key for key in path)
                sizes = leaf.sharding.mesh.shape
                spec = (axis if axis and sizes[axis] > 1 else "." for axis in leaf.sharding.spec)
                row = table.setdefault(model, {}).setdefault(name, {})
                row[",".join(map(str, mesh))] = " ".join(spec)
    return table


def write_golden() -> None:
    lines = []
    for model, rows in current_shardings().items():
        inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        lines.append(f"{json.dumps(model)}: {{\n{inner}\n}}")
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def test_every_weight_lies_where_the_golden_file_says():
    assert current_shardings() == json.loads(GOLDEN.read_text())


def test_moments_lie_where_their_weights_do():
    state = state_of("v1_10m", (2, 2, 2))
    moments = state.optimizer[1][0]
    for tree in (moments.mu, moments.nu):
        places = jax.tree.map(lambda leaf: leaf.sharding, tree)
        assert places == jax.tree.map(lambda leaf: leaf.sharding, state.params)


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 1, 4), (2, 2, 2)])
def test_sharding_takes_the_blocks_share_off_each_device(mesh):
    whole = state_of("v2_104m", (8, 1, 1)).params["blocks"]
    parts = state_of("v2_104m", mesh).params["blocks"]
    kernels = [parts[name]["kernel"] for name in ("query", "up", "down", "attention_output")]
    parts_per_kernel = mesh[1] * mesh[2]
    for kernel in kernels:
        assert bytes_per_device(kernel) * parts_per_kernel == 4 * kernel.size
    assert bytes_per_device(parts) < 1.02 * bytes_per_device(whole) / parts_per_kernel


# Per device a batch is many times the size of the weights, as in any real run: where it is not, XLA
# rightly moves activations rather than weights.
SMALL = EncoderConfig(512, 2, 64, 4, 128, 128, dropout=0.0, attention_dropout=0.0)
CELLS = 128
ALLOWED = {
    # Gradients are added up over copies of the model, and nothing else moves.
    (8, 1, 1): {"all-reduce"},
    # Weights are gathered for use; where gradients are scattered, a CPU adds them up everywhere.
    (1, 8, 1): {"all-gather", "all-reduce", "reduce-scatter"},
    # The parts of heads and feed-forward add up what they computed; of the parts of the vocabulary,
    # for loss and accuracy, the highest scores and sums are taken.
    (2, 1, 4): {"all-reduce"},
    # All of these; and XLA passes on the parts of the head's dense layer instead of gathering it.
    (2, 2, 2): {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"},
}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_compiled_step_holds_only_the_collectives_it_should(mesh):
    run = run_on(mesh, SMALL, CELLS)
    with jax.set_mesh(run.mesh):
        batch = abstract_batch(run, CELLS, SMALL.positions)
        program = run.train_step.lower(run.abstract_state, batch).compile()
    found = collectives_in(program.as_text())
    assert "all-reduce" in found
    assert set(found) <= ALLOWED[mesh], found
    params = run.abstract_state.params
    assert memory_of(program).arguments >= bytes_per_device(run.abstract_state)
    if mesh == (8, 1, 1):
        # Every gradient once, in float32, and a handful of sums. The embedding's comes in two
        # parts, from the input and from the head that is tied to it; the token type that no cell
        # has gets none.
        weights = SMALL.parameters
        table = SMALL.vocabulary_size * SMALL.width
        once = 4 * (weights - SMALL.width)
        assert once <= found["all-reduce"].payload <= once + 4 * table + 100
    if "collective-permute" in found:
        assert found["collective-permute"].payload <= 4 * SMALL.width**2
    if mesh == (1, 8, 1):
        sharded = [leaf.size for leaf in jax.tree.leaves(params) if any(leaf.sharding.spec)]
        assert found["all-gather"].payload >= 4 * sum(sharded)


PROGRAM = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (carried: (s32[], f32[16,4])) -> (s32[], f32[16,4]) {
  %carried = (s32[], f32[16,4]{1,0}) parameter(0)
  %part = f32[2,4]{1,0} slice(%carried), slice={[0:2], [0:4]}
  %whole = f32[16,4]{1,0} all-gather(%part), channel_id=1, dimensions={0}
  %low = bf16[16]{0} convert(%carried)
  %start = ((bf16[16]{0}), bf16[16]{0}) all-reduce-start(%low), channel_id=2, to_apply=%add
  %done = bf16[16]{0} all-reduce-done(%start)
  ROOT %out = (s32[], f32[16,4]{1,0}) tuple(%i, %whole)
}

%other (carried: (s32[], f32[16,4])) -> (s32[], f32[16,4]) {
  %carried = (s32[], f32[16,4]{1,0}) parameter(0)
  ROOT %turned = (s32[], f32[16,4]{1,0}) all-to-all(%carried), channel_id=4
}

%above (carried: (s32[], f32[16,4])) -> pred[] {
  %carried = (s32[], f32[16,4]{1,0}) parameter(0)
  %limit = s32[] constant(3)
  ROOT %more = pred[] compare(%i, %limit), direction=LT
}

%fused (p: f32[16,4]) -> f32[2,4] {
  %p = f32[16,4]{1,0} parameter(0)
  ROOT %scattered = f32[2,4]{1,0} reduce-scatter(%p), channel_id=3, to_apply=%add
}

%fused.clone (p: f32[16,4]) -> f32[2,4] {
  %p = f32[16,4]{1,0} parameter(0)
  ROOT %scattered.1 = f32[2,4]{1,0} reduce-scatter(%p), channel_id=3, to_apply=%add
}

ENTRY %main (x: f32[16,4]) -> f32[2,4] {
  %x = f32[16,4]{1,0} parameter(0)
  %loop = (s32[], f32[16,4]{1,0}) while(%x), body=%body, config={"known_trip_count":{"n":"6"}}
  %untold = (s32[], f32[16,4]{1,0}) while(%x), condition=%above, body=%other
  %one = f32[2,4]{1,0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %two = f32[2,4]{1,0} fusion(%x), kind=kLoop, calls=%fused.clone
}
"""


def test_collectives_are_counted_by_rounds_and_once_a_channel():
    assert collectives_in(PROGRAM) == {
        "all-gather": Collectives(6, 6 * 16 * 4 * 4),
        "all-reduce": Collectives(6, 6 * 16 * 2),
        "all-to-all": Collectives(3, 3 * (4 + 16 * 4 * 4)),
        "reduce-scatter": Collectives(1, 16 * 4 * 4),
    }


if __name__ == "__main__":
    write_golden()
