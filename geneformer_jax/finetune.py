"""Fine-tune a pretrained model to tell cells or genes apart, and measure how well it does.

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
to go on after an interruption. With --trials, hyper-parameters are searched in the space
`config.search` instead.
"""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from geneformer_jax.common import command_line
from geneformer_jax.common.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, e.g. configs/finetune_cells.py.", lock_config=True
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "Pretrained model: checkpoint, workdir, or Hugging Face directory."
)
_VOCABULARY = flags.DEFINE_string(
    "vocabulary", "", "Vocabulary folder, for a checkpoint that carries none."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run: a new one, or one to go on in.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check everything, say what would run, and stop.")
_TRIALS = flags.DEFINE_integer(
    "trials", 0, "Search hyper-parameters: so many trials in all, those done before included.",
    lower_bound=0,
)  # fmt: skip
_SECTIONS = ("task", "targets", "search")


def main() -> None:
    """Fine-tunes as the flags say, and reports."""
    command_line.require("config", *([] if _DRY_RUN.value else ["workdir"]))
    # What imports JAX's heavier companions waits until the flags are known to be right.
    from geneformer_jax.cells.store.cell_store import CellStore
    from geneformer_jax.finetuning.config import typed_finetune_config
    from geneformer_jax.finetuning.run import prepare_protocol
    from geneformer_jax.interop.load import load_model

    given = _CONFIG.value.to_dict()
    sections = {name: given.pop(name) for name in _SECTIONS if name in given}
    config = typed_finetune_config(given)
    if not config.data.store:
        raise InputError("--config.data.store is not set; name a folder written by tokenize")
    cells = CellStore.open(config.data.store)
    model = load_model(_CHECKPOINT.value, _VOCABULARY.value or None) if _CHECKPOINT.value else None
    if not model:
        print("no --checkpoint: the network is trained from scratch", flush=True)
    protocol = prepare_protocol(sections, cells)
    if _DRY_RUN.value:
        print("\n".join(protocol.describe(model, config)))
    elif _TRIALS.value:
        _search(protocol, model, config, sections.get("search", {}))
    else:
        lines = protocol.run(model, config, Path(_WORKDIR.value), _CONFIG.value.to_dict())
        print("\n".join(lines))


def _search(protocol: Any, model: Any, config: Any, section: dict[str, Any]) -> None:
    try:
        from geneformer_jax.finetuning import search as finetuning_search
    except ModuleNotFoundError as error:
        raise InputError('a search needs Optuna: pip install "geneformer_jax[search]"') from error
    search = finetuning_search.Search(
        protocol.task,
        protocol.outputs,
        model,
        config,
        finetuning_search.typed_search(section),
        Path(_WORKDIR.value),
    )
    table = search.run(_TRIALS.value)
    print(table.to_string(index=False))
    print(f"trials: {_WORKDIR.value}/{finetuning_search.TRIALS}")


if __name__ == "__main__":
    command_line.run(main)
