"""The training step compiled for hardware that is not there.

Marked `aot_tpu`: needs libtpu, which the test extra installs. Marked `aot_cuda`: needs JAX's CUDA
plugin, which `make aot` installs.
"""

import dataclasses
import os
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.model.config import EncoderConfig, MeshConfig
from geneformer_jax.model.sharding import make_mesh
from geneformer_jax.training.api import pretrain
from geneformer_jax.training.config import pretrain_config, typed_config
from geneformer_jax.training.dry_run import hardware
from geneformer_jax.training.dry_run.program import collectives_in, memory_of
from geneformer_jax.training.dry_run.report import abstract_batch, describe_dry_run
from geneformer_jax.training.dry_run.synthetic_corpus import synthetic_corpus
from geneformer_jax.training.flops import bytes_per_device
from geneformer_jax.training.run import prepare_run
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.configs import load
from tests.helpers.pretrain_runs import config_of as pretraining_config
from tests.helpers.xla import CPU_COMPILING

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = EncoderConfig(512, 2, 128, 2, 128, 128, dropout=0.1, attention_dropout=0.0)


def require_compiler(*modules: str) -> None:
    if not any(hardware._is_installed(module) for module in modules):
        reason = f"no {modules[0]}: install the extra aot (TPU) or aot_cuda"
        if os.environ.get("CI") and "libtpu" in modules:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def libtpu():
    require_compiler("libtpu")
    # libtpu reads these flags too, and ends the process at one that it does not know.
    flags = os.environ["XLA_FLAGS"].split()
    known = " ".join(flag for flag in flags if flag not in CPU_COMPILING.split())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", known)
        yield


@pytest.fixture(scope="module")
def cuda_plugin():
    require_compiler(*hardware._CUDA_PLUGINS)


def small_run(target: str, **changes):
    """A small model on stated cells, made ready for a target."""
    config = pretrain_config(SMALL)
    config.data.cells_per_batch = 32
    config.evaluation.held_out_cells = 32
    config.update_from_flattened_dict(changes)
    devices = hardware.find_hardware(target).devices
    return prepare_run(typed_config(config), synthetic_corpus("3200x128", 512), devices)


def compile_step(run):
    with jax.set_mesh(run.mesh):
        batch = abstract_batch(run, run.shape.cells[-1], run.shape.buckets[-1])
        return run.train_step.lower(run.abstract_state, batch).compile()


@pytest.mark.slow
@pytest.mark.aot_tpu
def test_the_step_compiles_for_a_slice_with_its_kernel_and_offload(libtpu):
    changes = {"mesh.fsdp": 2, "runtime.precision": "bfloat16", "runtime.optimizer_on_host": True}
    run = small_run("tpu:v5e:2x2", **changes)
    assert run.runtime.attention == "splash"
    program = compile_step(run)
    text = program.as_text()
    assert "tpu_custom_call" in text, "the attention kernel"
    found = collectives_in(text)
    assert {"all-gather", "all-reduce"} <= set(found)
    assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}
    memory = memory_of(program)
    moments = bytes_per_device(run.abstract_state.optimizer)
    assert memory.host >= 0.95 * moments, "Adam's moments are in the host's memory"
    assert memory.peak > memory.arguments


@pytest.mark.aot_tpu
def test_what_does_not_fit_is_refused_with_numbers_and_remedies(libtpu, monkeypatch, capsys):
    arguments = [
        f"--config={CONFIGS / 'pretrain_v2_316m.py'}",
        "--dry_run",
        "--target=tpu:v5e:1x1",
        "--corpus=100000x4096",
        "--config.mesh.fsdp=1",
        "--config.runtime.remat=none",
    ]
    status, text, error = run_command("pretrain", arguments, monkeypatch, capsys)
    assert status == 1
    assert "attention: " in text
    assert_one_line(error)
    needed = re.search(r"does not fit tpu:v5e:1x1: it takes ([\d.]+) GiB on each device", error)
    assert float(needed[1]) > 100
    assert "16.0 GiB of 16.0 GiB can be used" in error
    for remedy in ("tokens_per_batch below", "micro_batches=2", "remat=full", "mesh.fsdp=2"):
        assert remedy in error


@pytest.mark.aot_tpu
def test_a_slice_that_is_not_sold_is_refused(libtpu):
    with pytest.raises(InputError, match="tpu:v5e:3x3 is no slice that exists"):
        hardware.find_hardware("tpu:v5e:3x3")


@pytest.mark.aot_tpu
def test_what_crashes_the_profiler_is_refused(libtpu, toy_store, tmp_path):
    hardware.find_hardware("tpu:v5e:2x2")
    with pytest.raises(InputError, match=r"profile\.steps`=2: .* JAX_PLATFORMS=cpu"):
        pretrain(pretraining_config(toy_store, **{"profile.steps": 2}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.aot_tpu
def test_slices_have_the_devices_jax_finds_on_them(libtpu):
    sizes = {
        "tpu:v4:2x2x2": ("TPU v4", 8, 2),
        "tpu:v5e:16x16": ("TPU v5 lite", 256, 64),
        "tpu:v5p:2x2x4": ("TPU v5", 16, 4),
        "tpu:v6e:4x4": ("TPU v6 lite", 16, 4),
    }
    for target, (kind, count, hosts) in sizes.items():
        devices = hardware.find_hardware(target).devices
        assert (devices[0].device_kind, len(devices)) == (kind, count)
        assert len({device.process_index for device in devices}) == hosts


@pytest.mark.aot_tpu
@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpu:v4:2x2x1", "tpu:v5p:2x2x1", "tpu:v6e:2x2"])
def test_the_step_compiles_for_every_kind_of_chip(target, libtpu):
    program = compile_step(small_run(target, **{"runtime.precision": "bfloat16"}))
    assert set(collectives_in(program.as_text())) == {"all-reduce"}


@pytest.mark.aot_tpu
@pytest.mark.slow
def test_v2_104m_fits_a_slice_of_256_chips(libtpu):
    config = load(CONFIGS / "pretrain_v2_104m.py")
    data = dataclasses.replace(config.data, tokens_per_batch=256 * 4096)
    config = dataclasses.replace(config, data=data)
    lines = describe_dry_run(config, target="tpu:v5e:16x16", corpus="30000000x4096")
    text = "\n".join(lines)
    assert "data 256 x fsdp 1 x tensor 1 on TPU v5 lite" in text
    assert "compiled for tpu:v5e:16x16: 256 cells x 4,096 tokens" in text
    assert "attention: splash" in text
    assert "all-reduce: " in text


def test_the_v100_configuration_asks_for_nothing_the_chip_lacks():
    config = load(CONFIGS / "pretrain_v1_10m_v100.py")
    assert config.runtime.precision == "float16", "sm_70 has no bfloat16 units"
    assert config.runtime.attention in ("xla", "chunked"), "cuDNN's attention needs sm_80"


@pytest.mark.aot_cuda
def test_the_v100_step_holds_no_bfloat16_and_no_kernel_of_newer_chips(cuda_plugin):
    changes = {"mesh.fsdp": 4, "runtime.precision": "float16", "runtime.attention": "chunked"}
    run = small_run("cuda:v100:1x2x4", **changes)
    text = compile_step(run).as_text()
    assert "f16[" in text
    assert "bf16" not in text
    calls = set(re.findall(r'custom_call_target="([^"]*)"', text))
    assert {call for call in calls if "triton" in call or "fmha" in call or "f8" in call} == set()
    assert '"__triton' not in text
    assert set(collectives_in(text)) == {"all-gather", "all-reduce", "reduce-scatter"}


@pytest.mark.aot_cuda
def test_a_v100_is_refused_cudnn_attention_and_an_h100_gets_it(cuda_plugin):
    changes = {"runtime.precision": "float16", "runtime.attention": "cudnn"}
    with pytest.raises(InputError, match=r"compute capability 8\.0 or more, not 7\.0"):
        small_run("cuda:v100:1x1x4", **changes)
    with pytest.raises(InputError, match="needs a TPU, not gpu"):
        small_run("cuda:h100:1x1x4", **{"runtime.attention": "splash"})
    run = small_run("cuda:h100:1x1x4", **{"runtime.precision": "bfloat16"})
    assert run.runtime.attention == "cudnn"
    assert "fmha" in compile_step(run).as_text()


@pytest.mark.aot_cuda
def test_what_does_not_fit_a_gpu_is_refused_too(cuda_plugin):
    config = pretrain_config("v1_10m")
    config.update_from_flattened_dict({"data.cells_per_batch": 2048, "runtime.attention": "xla"})
    lines = describe_dry_run(typed_config(config), target="cuda:v100:1x1x1", corpus="9999x2048")
    with pytest.raises(InputError, match=r"does not fit cuda:v100:1x1x1: .*MEM_FRACTION is 0.75"):
        list(lines)


@pytest.mark.aot_tpu
@pytest.mark.parametrize("target", ["tpu:v6e:4x4", "tpu:v4:2x2x4", "tpu:v5p:2x2x4"])
def test_meshes_of_other_sizes_than_the_slice_are_laid_out(libtpu, target):
    """A slice of 4 x 4 chips has no axis of 8: JAX's own make_mesh gives up on most of them."""
    devices = hardware.find_hardware(target).devices
    mesh = make_mesh(MeshConfig(data=2, fsdp=8), devices)
    assert mesh.devices.shape == (2, 8, 1)
    assert set(mesh.devices.flat) == set(devices)


class NodeGpu(SimpleNamespace):
    """A GPU as JAX describes it where each node is a slice of its own."""

    __hash__ = object.__hash__


def test_gpus_of_several_nodes_are_laid_out_node_by_node():
    gpus = [
        NodeGpu(platform="gpu", device_kind="V100", id=i, process_index=i // 4, slice_index=i // 4)
        for i in range(12)
    ]
    mesh = make_mesh(MeshConfig(data=3, fsdp=4), gpus)
    assert [[gpu.id for gpu in node] for node in mesh.devices[:, :, 0]] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]
    ]  # fmt: skip
