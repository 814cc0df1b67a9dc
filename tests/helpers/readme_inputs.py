"""Small inputs under the names that the commands in README and docs have, and those commands."""

import dataclasses
import pickle
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_jax.interop.huggingface import export_model
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary
from geneformer_jax.model.pretrained import save_model
from tests.helpers.toy import GENES, toy_cells, toy_model

PROJECT = Path(__file__).resolve().parents[2]
SYMBOLS = ["TTN", "GATA4", "CD74", "CD3E", *(f"GENE{number}" for number in range(4, GENES))]
_MODULE = "python -m geneformer_jax."
# What takes long in a configuration, shortened; the path stays the one that is written.
_SHORTER = {
    "quickstart": "config.steps = 4; config.optimizer.warmup_steps = 2",
    "tasks/dosage": "config.task.permutations = 2; config.task.untrained_layers = ()",
}


class Command(NamedTuple):
    """A command as it is written in a document."""

    name: str
    arguments: list[str]

    @property
    def flags(self) -> dict[str, str]:
        """Flag -> value."""
        pairs = (argument.removeprefix("--").partition("=") for argument in self.arguments)
        return {name: value for name, _, value in pairs}


def commands_in(document: Path) -> list[Command]:
    """The commands in the code blocks of a document, in order."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", document.read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines if line.startswith(_MODULE)]
    return [Command(words[2].removeprefix("geneformer_jax."), words[3:]) for words in found]


def write_inputs(folder: Path) -> None:
    """Writes all that the commands of the documents read and do not make themselves."""
    cells = named_cells()
    cells.write_h5ad(folder / "pbmc.h5ad")
    cells.write_h5ad(folder / "new.h5ad")
    cells.write_h5ad(folder / "mycells.h5ad")
    (folder / "corpus").mkdir()
    for number in range(3):
        part = cells[80 * number : 80 * (number + 1)].copy()
        part.obs_names = [f"{name}-{number}" for name in part.obs_names]
        part.write_h5ad(folder / "corpus" / f"{number}.h5ad")
    (folder / "transcription_factors.txt").write_text("\n".join(SYMBOLS[:12]) + "\n")
    classes = ["sensitive", "insensitive"] * 30
    table = pd.DataFrame({"gene_id": ids_of(SYMBOLS[4:64]), "class": classes})
    table.to_csv(folder / "dosage_sensitivity_TFs.tsv", sep="\t", index=False)
    write_original(folder)
    write_configs(folder / "configs")


def named_cells() -> ad.AnnData:
    """The toy cells, with symbols and more columns."""
    cells = toy_cells()
    cells.var_names = SYMBOLS
    number = np.arange(cells.n_obs)
    cells.obs["cell_type"] = cells.obs.pop("kind")
    cells.obs["donor"] = [f"donor{n % 12}" for n in number]
    cells.obs["disease"] = np.array(["healthy", "mild", "dilated"])[number // 4 % 3]
    cells.obs["tissue"] = "blood"
    return cells


def ids_of(symbols: list[str]) -> list[str]:
    """Ensembl ids, one for each symbol."""
    return [f"ENSG{SYMBOLS.index(symbol):011d}" for symbol in symbols]


def write_original(folder: Path) -> None:
    """Writes dictionaries and a model in the files of the original."""
    dictionaries = folder / "dictionaries" / "v1_gc30M"
    dictionaries.mkdir(parents=True)
    ids = ids_of(SYMBOLS)
    contents = {
        "token_dictionary": {"<pad>": 0, "<mask>": 1} | {gene: 2 + n for n, gene in enumerate(ids)},
        "gene_median_dictionary": dict.fromkeys(ids, 1.0),
        "ensembl_mapping_dict": dict(zip([*SYMBOLS, *ids], [*ids, *ids], strict=True)),
        "gene_name_id_dict": dict(zip(SYMBOLS, ids, strict=True)),
    }
    for name, content in contents.items():
        (dictionaries / f"{name}_gc30M.pkl").write_bytes(pickle.dumps(content))
    vocabulary = read_original_vocabulary(dictionaries)
    model = dataclasses.replace(toy_model(layers=6), vocabulary=vocabulary)
    checkpoint = save_model(model, folder / "made" / "checkpoint", {})
    export_model(checkpoint, folder / "Geneformer-V1-10M")


def write_configs(folder: Path) -> None:
    """Writes a configuration file in the place of each of the project's, shorter where due."""
    for path in (PROJECT / "configs").rglob("*.py"):
        name = path.relative_to(PROJECT / "configs").with_suffix("")
        target = folder / name.with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            "import runpy\n\n\ndef get_config():\n"
            f"    config = runpy.run_path({str(path)!r})['get_config']()\n"
            f"    {_SHORTER.get(name.as_posix(), '')}\n    return config\n"
        )
