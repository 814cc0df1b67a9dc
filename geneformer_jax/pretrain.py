"""Pretrain a model by masked gene prediction.

Examples:
  python -m geneformer_jax.pretrain --config=configs/quickstart.py \\
      --config.data.store=STORE --workdir=RUN
  python -m geneformer_jax.pretrain --config=configs/pretrain_v1_10m_v100.py --dry_run \\
      --corpus=27400000x2048 --target=cuda:v100:1x3x4

Reads a cell store written by `tokenize`. Writes checkpoints, metrics.jsonl, provenance.json and a
report on the loss into the workdir. Any value of the configuration file can be changed on the
command line (--config.optimizer.learning_rate=5e-4). Run the same command again to resume.

With --dry_run it only reports what it would do and cost; with --target too, it compiles the
training step for hardware that need not be here, and reports the memory it takes there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from geneformer_jax.common import command_line
from geneformer_jax.common.command_help import configuration_help
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.threads import keep_freed_memory
from geneformer_jax.common.workdir import sole_run

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, or the name of one that comes with the package, such as "
    "quickstart (a wrong name lists them).", lock_config=True,
)  # fmt: skip
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run: a new one, or one to resume.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Check everything, report what the run would do and cost, and stop."
)
_TARGET = flags.DEFINE_string(
    "target",
    "",
    "With --dry_run: compile for tpu:CHIP:CHIPS (tpu:v5e:16x16; v4, v5p, v6e) or "
    "cuda:GPU:SLICESxHOSTSxGPUS (cuda:v100:1x3x4, cuda:h100:1x1x8).",
)
_CORPUS = flags.DEFINE_string(
    "corpus", "", "With --dry_run: CELLSxTOKENS of each, in place of a store."
)
_DEVICE_TFLOPS = flags.DEFINE_float(
    "device_tflops", 0.0, "With --dry_run: peak of one device; 0 takes what its maker states."
)
_MFU = flags.DEFINE_float("mfu", 0.3, "With --dry_run: fraction of the peak to reckon with.")
_DRY_RUN_ONLY = ("target", "corpus", "device_tflops", "mfu")
command_line.process_flags()


def main() -> None:
    """Pretrains, then reports and draws the loss."""
    _check_dry_run()
    keep_freed_memory()
    # JAX takes seconds to import, which --help and a mistyped flag should not have to wait for.
    import jax

    from geneformer_jax.model.processes import join_processes

    join_processes(*command_line.processes())
    from geneformer_jax.training.api import pretrain
    from geneformer_jax.training.config import typed_config
    from geneformer_jax.training.dry_run.report import describe_dry_run
    from geneformer_jax.training.flops import Speed
    from geneformer_jax.training.preemption import Stopped

    config, workdir = typed_config(_CONFIG.value), Path(_WORKDIR.value)
    if _DRY_RUN.value:
        speed = Speed(_DEVICE_TFLOPS.value * 1e12, _MFU.value)
        lines = describe_dry_run(config, target=_TARGET.value, corpus=_CORPUS.value, speed=speed)
        command_line.show(lines)
        return
    try:
        result = pretrain(config, workdir)
    except Stopped:
        _write_report(workdir, {}, conclusions=["the run was stopped before its last step"])
        raise
    if jax.process_index():
        return
    command_line.show(result.report())
    print(f"checkpoint: {result.checkpoint}")
    scores = None if result.held_out is None else result.table()
    baselines = {name: score.loss for name, score in result.baselines.items()}
    _write_report(workdir, baselines, scores, result.conclusions())


def _write_report(
    workdir: Path,
    baselines: Mapping[str, float],
    scores: Any = None,
    conclusions: Sequence[str] = (),
) -> None:
    """Writes the report on the run, with the losses that it has logged."""
    import jax

    from geneformer_jax.reporting.command_reports import LOSS, write_pretraining_report
    from geneformer_jax.training.telemetry import read_metrics

    if jax.process_index():
        return
    named = {name.replace("_", " "): loss for name, loss in baselines.items()}
    metrics = read_metrics(workdir)
    with sole_run(workdir):
        report = write_pretraining_report(workdir, metrics, scores, conclusions, named)
    print(f"loss curve: {workdir / LOSS}.png; report: {report}")


def _check_dry_run() -> None:
    given = [name for name in _DRY_RUN_ONLY if flags.FLAGS[name].present]
    if given and not _DRY_RUN.value:
        raise InputError(f"--{given[0]} is for estimates only; add --dry_run")
    if _DEVICE_TFLOPS.value < 0:
        raise InputError(f"--device_tflops is {_DEVICE_TFLOPS.value}; it must not be negative")
    if not 0 < _MFU.value <= 1:
        raise InputError(f"--mfu is {_MFU.value}; it must be above 0 and at most 1, such as 0.3")
    if _TARGET.value:
        import jax

        # The compilers for other machines need none of this one's accelerators.
        jax.config.update("jax_platforms", "cpu")


def _configuration_help() -> list[str]:
    from geneformer_jax.training.config import PretrainConfig

    return configuration_help({"": PretrainConfig})


if __name__ == "__main__":
    command_line.run(
        main,
        needed=("config", "workdir"),
        spared={"dry_run": ("workdir",)},
        more_help=_configuration_help,
    )
