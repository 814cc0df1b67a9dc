"""The commands that write: those that are killed, see `tests.campaigns.kills`, and some more."""

from pathlib import Path

from tests.campaigns.kills.commands import COMMANDS as KILLED
from tests.campaigns.kills.commands import Command
from tests.campaigns.kills.commands import write_inputs as write_inputs_of_killed
from tests.campaigns.readers.counts import genes_of_counts
from tests.helpers.small_stores import cells, write

_CELLS = "--cells={inputs}/store"
_MODEL = "--checkpoint={inputs}/model"
# What the commands import that need no JAX; all others import all there is.
LIGHT = {
    "build_vocabulary": ("cells.tokenization.vocabulary_shards", "reporting.command_reports"),
    "tokenize": ("cells.store.building.run", "reporting.command_reports"),
}
COMMANDS = KILLED | {
    "embed to npy": Command("embed", (_MODEL, _CELLS, "--output={output}/rows.npy")),
    "convert cells": Command(
        "convert", ("--source={inputs}/store", "--target={output}/cells.dataset")
    ),
    "predict": Command(
        "predict",
        ("--checkpoint={inputs}/classifier", _CELLS, "--output={output}/predicted.csv",
         "--labels_key=kind"),
    ),
    "validate": Command(
        "validate",
        (_MODEL, "--cells={inputs}/screen.h5ad", "--output={output}/validation",
         "--perturbation=target", "--control=non-targeting", "--edited_cells=12",
         "--like_rank=1", "--hidden_layer=0"),
    ),
    "transfer": Command(
        "transfer",
        (_MODEL, "--reference={inputs}/counts/a.h5ad", "--query={inputs}/counts/b.h5ad",
         "--label=kind", "--output={output}/labelled.h5ad"),
    ),
}  # fmt: skip


def write_inputs(name: str, folder: Path) -> None:
    """Writes what a command reads into a new folder."""
    if name in LIGHT:
        _write_counts(folder)
        return
    write_inputs_of_killed(folder)
    if name == "predict":
        _write_classifier(folder / "classifier")
    if name == "validate":
        from tests.helpers.toy_screens import toy_screen

        toy_screen().write_h5ad(folder / "screen.h5ad")


def _write_counts(folder: Path) -> None:
    # Without JAX, which takes as long to import as these commands to run.
    (folder / "counts").mkdir(parents=True)
    for seed, name in enumerate("ab"):
        made = cells(seed, name, n_cells=8)
        made.obs["kind"] = "a"
        write(made, folder / "counts" / f"{name}.h5ad")
    genes_of_counts().save(folder / "vocabulary")


def _write_classifier(folder: Path) -> None:
    from geneformer_jax.model.heads import HeadConfig
    from geneformer_jax.model.pretrained import save_model
    from tests.helpers.toy import toy_model

    head = HeadConfig("cell_classifier", ("a", "b"), 0.1)
    save_model(toy_model(layers=1, head=head), folder, {})
