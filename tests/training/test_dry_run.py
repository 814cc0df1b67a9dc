"""`pretrain --dry_run`: what it reports, and what is refused before anything compiles."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from geneformer_jax.training.config import pretrain_config, typed_config
from geneformer_jax.training.dry_run import hardware
from geneformer_jax.training.dry_run.report import abstract_batch, describe_dry_run
from geneformer_jax.training.dry_run.synthetic_corpus import synthetic_corpus
from geneformer_jax.training.flops import Speed, peak_flops
from geneformer_jax.training.run import prepare_run
from geneformer_jax.training.state import init_state
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.configs import toy_config

PROJECT = Path(__file__).parents[2]
CONFIG = """
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.training.config import pretrain_config

def get_config():
    model = EncoderConfig(1, 2, 32, 4, 64, 256, dropout=0.1, attention_dropout=0.1)
    config = pretrain_config(model, vocabulary_size=0)
    config.data.cells_per_batch = 8
    config.data.max_buckets = 2
    config.evaluation.held_out_cells = 24
    return config
"""


@pytest.fixture
def pretrain(tmp_path, monkeypatch, capsys):
    """Runs the command with the toy configuration and more flags."""
    path = tmp_path / "config.py"
    path.write_text(CONFIG)

    def run(*flags: str) -> tuple[int, str, str]:
        return run_command("pretrain", [f"--config={path}", *flags], monkeypatch, capsys)

    return run


@pytest.fixture
def nothing_compiles(monkeypatch):
    def compile(*_, **__):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)


REFUSED = [
    ("model.heads=3", "width 32 is not divisible by model.heads 3; choose a multiple"),
    ("mesh.tensor=8", "heads 4 is not divisible by --config.mesh.tensor 8; choose a divisor"),
    ("model.vocabulary_size=99", "99 but the store's vocabulary has 152 tokens; tokenize with"),
    ("mesh.data=16", "cannot be laid out on the 8 devices at hand; choose"),
    ("runtime.attention=cudnn", 'needs an NVIDIA GPU, not cpu: change that, or use .*"auto"'),
    ("runtime.attention=splash", 'needs a TPU, not cpu: change that, or use .*"auto"'),
    ("runtime.precision=float8", "choose one of float32, bfloat16, float16"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[change for change, _ in REFUSED])
def test_the_door_refuses_what_cannot_run(
    change, words, pretrain, toy_store, tmp_path, nothing_compiles
):
    workdir = tmp_path / "run"
    flags = [f"--config.data.store={toy_store.folder}", f"--workdir={workdir}"]
    status, _, error = pretrain(*flags, f"--config.{change}")
    assert status == 1
    assert_one_line(error)
    assert re.search(words, error), error
    assert not workdir.exists()


def test_float16_cannot_be_had_without_a_loss_scale(toy_store):
    run = prepare_run(toy_config(toy_store, **{"runtime.precision": "float16"}), toy_store)
    assert run.abstract_state.loss_scale is not None
    scale = jax.jit(lambda: init_state(run.recipe).loss_scale.scale)()
    assert scale > 1


def test_a_dry_run_reports_memory_arithmetic_steps_and_hours(pretrain, toy_store):
    store = f"--config.data.store={toy_store.folder}"
    status, text, _ = pretrain("--dry_run", store, "--device_tflops=0.002", "--mfu=0.25")
    assert status == 0
    assert "steps: 8" in text
    assert re.search(r"on each device: weights 0\.000 GiB, optimizer state 0\.000 GiB", text)
    total = float(re.search(r"FLOP a step, (\S+) in all", text)[1])
    hours = float(re.search(r"hours: (\S+),", text)[1])
    assert hours == pytest.approx(total / (8 * 0.002e12 * 0.25) / 3600, rel=0.01)
    assert "8 cpu reach 25% of 0.002 TFLOP/s each" in text
    assert not [line for line in text.splitlines() if "compiled" in line]


def test_hours_need_a_peak(pretrain, toy_store):
    _, text, _ = pretrain("--dry_run", f"--config.data.store={toy_store.folder}")
    assert "hours: not known, as the peak of cpu in float32 is not" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--target=tpu:v5e:2x2", "--workdir=run"], "--target is for estimates only"),
        (["--corpus=10x10", "--workdir=run"], "--corpus is for estimates only"),
        (["--dry_run", "--mfu=2"], "--mfu is 2.0"),
        (["--dry_run", "--device_tflops=-1"], "--device_tflops is -1.0"),
        (["--dry_run", "--corpus=many"], "must be cells x tokens of each"),
        (["--dry_run", "--corpus=100x64"], "a --corpus has no vocabulary"),
        (["--dry_run"], "--config.data.store is not set"),
        (["--dry_run", "--target=gpu:h100:1x1x8"], '"gpu" is neither tpu nor cuda'),
        (["--dry_run", "--target=tpu:v5:2x2"], 'no chip "v5" .did you mean "v5'),
        (["--dry_run", "--target=tpu:v5p:4x4"], '"4x4" must be 3 numbers'),
        (["--dry_run", "--target=cuda:v100:12"], '"12" must be 3 numbers'),
        (["--dry_run", "--target=cuda:v100:1x0x4"], '"1x0x4" must be 3 numbers'),
    ],
)
def test_the_door_refuses_targets_and_estimates_that_cannot_be(
    flags, words, pretrain, toy_store, nothing_compiles
):
    if any("target" in flag for flag in flags):
        flags = [*flags, f"--config.data.store={toy_store.folder}"]
    status, _, error = pretrain(*flags)
    assert status == 1
    assert_one_line(error)
    assert re.search(words, error), error


@pytest.mark.parametrize(
    ("target", "extra"), [("tpu:v5e:2x2", "aot"), ("cuda:h100:1x1x8", "aot_cuda")]
)
def test_a_compiler_that_is_not_installed_is_told_with_its_extra(
    target, extra, pretrain, toy_store, monkeypatch
):
    monkeypatch.setattr(hardware, "_is_installed", lambda module: False)
    store = f"--config.data.store={toy_store.folder}"
    status, _, error = pretrain("--dry_run", store, f"--target={target}")
    assert status == 1
    assert_one_line(error)
    assert f'pip install "geneformer_jax[{extra}]"' in error


def test_a_synthetic_corpus_takes_a_stores_place():
    config = pretrain_config("v1_10m")
    config.data.cells_per_batch = 144
    config.mesh.data = 4
    lines = list(describe_dry_run(typed_config(config), corpus="1_000_000x2048"))
    text = "\n".join(lines)
    assert "1,000,000 to train on" not in text
    assert "999,000 to train on, 1,000 held out" in text
    assert "144 x 2048\npadding: " in text
    # Three epochs of 6,937.5 batches.
    assert "steps: 20,814 (6,938 an epoch)" in text
    corpus = synthetic_corpus("10x64", 152)
    assert corpus.vocabulary.size == 152
    np.testing.assert_array_equal(corpus.lengths, np.full(10, 64))


PACKED = {"data.packing": True, "data.cells_per_batch": 0, "data.tokens_per_batch": 1_024}


@pytest.mark.parametrize("changes", [{}, PACKED, {"masking.on_device": True}], ids=str)
def test_the_compiled_batch_is_shaped_as_real_batches_are(changes, toy_store):
    run = prepare_run(toy_config(toy_store, **changes), toy_store)
    for step in range(4):
        real = run.batches[step]
        stated = abstract_batch(run, *real.tokens_BT.shape)
        assert jax.tree.structure(stated) == jax.tree.structure(real)
        for one, other in zip(jax.tree.leaves(stated), jax.tree.leaves(real), strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_makers_peaks_are_found_by_jaxs_names():
    class Device:
        def __init__(self, device_kind: str):
            self.device_kind = device_kind

    peaks = {
        name: peak_flops(Device(name), "bfloat16")
        for name in ("TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "NVIDIA H100 80GB HBM3")
    }
    assert list(peaks.values()) == [275e12, 197e12, 459e12, 918e12, 989e12]
    assert peak_flops(Device("Tesla V100-SXM2-32GB"), "float16") == 125e12
    assert peak_flops(Device("Tesla V100-SXM2-32GB"), "bfloat16") is None
    assert Speed().peak == 0
