"""Makes the model that comes with the package: `geneformer_jax.load_model("demo-blood")`.

    python launch/demo_blood.py --cells=FOLDER --dictionaries=FOLDER --workdir=demo_blood

From two public sets of blood cells (CC BY 4.0) to the files in geneformer_jax/demo_blood: the
vocabulary, training with `configs/demo_blood.py`, the weights in bfloat16. Every command is printed
before it runs. Interrupted or run again, it goes on where it stopped.

--cells holds combat_covid.h5ad and pbmc_frozen_donorA.h5ad, to train on, as raw counts with Ensembl
ids; --dictionaries the original's of its first models, for the medians of genes. Never trained on:
two donors of combat_covid, so that the model can be judged on them.
"""

import dataclasses
from pathlib import Path

import anndata as ad
import numpy as np
from absl import flags
from ml_dtypes import bfloat16

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common import command_line
from geneformer_jax.common.files import atomic_write, remove
from geneformer_jax.interop.huggingface import write_model
from geneformer_jax.interop.load import load_model
from geneformer_jax.interop.model_folders import SHIPPED
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary
from run_command import run_command

_CONFIG = "configs/demo_blood.py"
_TRAINING = ("combat_covid", "pbmc_frozen_donorA")
_DONORS, _HELD_OUT = "combat_covid", ("H00053", "S00040")
_MIN_CELLS = 10
_MAX_LENGTH = 1_024

_CELLS = flags.DEFINE_string("cells", "", "Folder of the raw counts.")
_DICTIONARIES = flags.DEFINE_string("dictionaries", "", "Folder of the original's V1 dictionaries.")
_WORKDIR = flags.DEFINE_string("workdir", "demo_blood", "Folder of all that is made on the way.")
_OUTPUT = flags.DEFINE_string(
    "output", str(SHIPPED["demo-blood"]), "Folder of the finished model; what it holds is replaced."
)


def training_counts(cells: Path, workdir: Path) -> list[Path]:
    """Returns the files to train on; that of several donors without those held out."""
    kept = workdir / f"{_DONORS}_training.h5ad"
    if not kept.exists():
        counts = ad.read_h5ad(cells / f"{_DONORS}.h5ad")
        with atomic_write(kept) as aside:
            counts[~counts.obs["donor"].isin(_HELD_OUT)].write_h5ad(aside)
    return [kept if name == _DONORS else cells / f"{name}.h5ad" for name in _TRAINING]


def write_vocabulary(counts: str, dictionaries: Path, workdir: Path) -> Path:
    """Returns the folder of the V1 vocabulary's genes that are seen in the cells."""
    seen, target = workdir / "genes_seen", workdir / "vocabulary"
    if not seen.exists():
        run_command("build_vocabulary", counts=counts, output=seen, min_cells=_MIN_CELLS)
    if not target.exists():
        original = read_original_vocabulary(dictionaries)
        kept = np.isin(original.gene_ids, GeneVocabulary.load(seen).gene_ids)
        genes = {name: getattr(original, name)[kept] for name in ("gene_ids", "symbols", "medians")}
        known = set(genes["gene_ids"])
        mapping = {name: gene for name, gene in original.id_mapping.items() if gene in known}
        dataclasses.replace(original, **genes, id_mapping=mapping).save(target)
    return target


def write_finished(run: Path, target: Path) -> None:
    """Writes the newest weights of a run in bfloat16; the card beside them stays."""
    aside = run.with_name("finished")
    remove(aside)
    write_model(load_model(run), aside, {"source": str(run)}, dtype=bfloat16)
    target.mkdir(parents=True, exist_ok=True)
    for path in aside.iterdir():
        remove(target / path.name)
        path.rename(target / path.name)


def main() -> None:
    """Runs build_vocabulary, tokenize and pretrain, and writes the model."""
    command_line.require("cells", "dictionaries")
    workdir = Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    counts = ",".join(map(str, training_counts(Path(_CELLS.value), workdir)))
    vocabulary = write_vocabulary(counts, Path(_DICTIONARIES.value), workdir)
    store, run = workdir / "cells", workdir / "run"
    run_command(
        "tokenize", counts=counts, vocabulary=vocabulary, output=store, max_length=_MAX_LENGTH
    )
    run_command("pretrain", config=_CONFIG, **{"config.data.store": store}, workdir=run)
    write_finished(run, Path(_OUTPUT.value))
    print(f"the model is in {_OUTPUT.value}")


if __name__ == "__main__":
    command_line.run(main)
