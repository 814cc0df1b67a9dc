"""Fine-tune a pretrained model to classify cells or genes, and evaluate it.

Examples:
  python -m geneformer_jax.finetune --config=configs/finetune_cells.py --checkpoint=RUN \\
      --config.data.store=STORE --config.task.label=cell_type --workdir=DIR
  python -m geneformer_jax.finetune --config=configs/tasks/dosage.py --checkpoint=RUN \\
      --config.data.store=STORE --config.task.genes=GENES.tsv --workdir=DIR
  python -m geneformer_jax.finetune --config=configs/finetune_targets.py --checkpoint=RUN \\
      --config.data.store=STORE --config.targets.classes=cell_type,disease \\
      --config.targets.numbers=age --workdir=DIR

The configuration's section `task` is one classification, with folds, metrics, figures and, in
configs/tasks, the paper's baselines; `targets` is several classes and numbers at once. Without
--checkpoint a network of the shape `config.model` is trained from scratch. The model of each fold
is DIR/networks/Geneformer/fold_0/model and so on; `predict` applies it. Run the same command again
to resume after an interruption. With --trials, hyper-parameters are searched in the space
`config.search` instead. On several machines give each process --processes, --process and
--coordinator, as to `pretrain`; all must see the same store and workdir.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from geneformer_jax.common import command_line
from geneformer_jax.common.command_help import configuration_help
from geneformer_jax.common.threads import keep_freed_memory

FLAGS = flags.FLAGS

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, or the name of one that comes with the package, such as "
    "finetune_cells (a wrong name lists them).", lock_config=True,
)  # fmt: skip
command_line.model_flags()
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run: a new one, or one to go on in.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check everything, print what would run, and stop.")
_TRIALS = flags.DEFINE_integer(
    "trials", 0, "Search hyper-parameters: number of trials in all, those done before included.",
    lower_bound=0,
)  # fmt: skip
command_line.process_flags()


def main() -> None:
    """Fine-tunes, searches, or describes what would run."""
    keep_freed_memory()
    # JAX takes seconds to import, which --help, a mistyped flag and a wrong column should not have
    # to wait for.
    from geneformer_jax.finetuning.named_columns import require_named_columns

    configuration, model = _CONFIG.value.to_dict(), None
    loading = command_line.model_arguments()
    require_named_columns(configuration)
    from geneformer_jax.model.processes import is_first, join_processes

    join_processes(*command_line.processes())
    from geneformer_jax.finetuning.run import FinetuneRun
    from geneformer_jax.interop.load import load_model

    if FLAGS.checkpoint:
        model = load_model(**loading)
    elif is_first():
        print("no --checkpoint: the network is trained from scratch", flush=True)
    run = FinetuneRun.open(configuration, model)
    if _DRY_RUN.value:
        lines = run.describe()
    elif _TRIALS.value:
        lines = run.search(Path(_WORKDIR.value), _TRIALS.value)
    else:
        lines = run.run(Path(_WORKDIR.value))
    if is_first():
        command_line.show(lines)


def _configuration_help() -> list[str]:
    from geneformer_jax.finetuning.classification.config import TaskConfig
    from geneformer_jax.finetuning.config import FinetuneConfig, MultitaskConfig, SearchConfig

    return configuration_help(
        {"task": TaskConfig, "targets": MultitaskConfig, "": FinetuneConfig, "search": SearchConfig}
    )


if __name__ == "__main__":
    command_line.run(
        main,
        needed=("config", "workdir"),
        spared={"dry_run": ("workdir",)},
        more_help=_configuration_help,
    )
