"""Small inputs under the names that the commands in README and docs have, and those commands."""

import dataclasses
import itertools
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
from tests.helpers.soma_files import as_census_cells, write_census
from tests.helpers.toy import GENES, toy_cells, toy_model

PROJECT = Path(__file__).resolve().parents[2]
# Genes that the documents name.
_NAMED = ["CD74", "CD3E", "LYZ"]
_REAL_CELLS = 192
_PROGRAM = re.compile(r"^(geneformer-jax |python -m geneformer_jax\.)")
_FENCED = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.M)
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
        own = itertools.takewhile(lambda argument: argument != "--", self.arguments)
        pairs = (argument.removeprefix("--").partition("=") for argument in own)
        return {name: value for name, _, value in pairs}

    @property
    def parts(self) -> list["Command"]:
        """The command, and the one that stands behind its -- if any does."""
        if "--" not in self.arguments:
            return [self]
        name, *arguments = self.arguments[self.arguments.index("--") + 1 :]
        return [self, Command(name, arguments)]


def code_blocks(document: Path) -> list[tuple[str, str]]:
    """The code blocks of a document, in order, as (language, text), without directives."""
    found = _FENCED.findall(document.read_text())
    return [(language, text) for language, text in found if not language.startswith("{")]


def commands_in(document: Path, without: str | None = None) -> list[Command]:
    """The commands in the code blocks of a document, in order, but for blocks with some text."""
    blocks = [
        block for _, block in code_blocks(document) if without is None or without not in block
    ]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [_PROGRAM.split(line)[-1] for line in lines if _PROGRAM.match(line)]
    words = [shlex.split(line, comments=True) for line in found]
    return [Command(name, arguments) for name, *arguments in words]


def write_inputs(folder: Path, cells: ad.AnnData, genes: pd.Series) -> None:
    """Writes all that the commands of the documents read and do not make themselves.

    Args:
      folder: to write in.
      cells: raw counts with all obs columns.
      genes: symbol -> Ensembl id, those that the documents name first.
    """
    cells.write_h5ad(folder / "pbmc.h5ad")
    cells.write_h5ad(folder / "new.h5ad")
    cells.write_h5ad(folder / "mycells.h5ad")
    with_targets(cells, list(genes.index[:2])).write_h5ad(folder / "screen.h5ad")
    hits = pd.DataFrame({"gene": genes.index[:60], "hit": ["yes", "no", "no"] * 20})
    hits.to_csv(folder / "hits.csv", index=False)
    (folder / "corpus").mkdir()
    for number, rows in enumerate(np.array_split(np.arange(cells.n_obs), 3)):
        part = cells[rows].copy()
        part.obs_names = [f"{name}-{number}" for name in part.obs_names]
        part.write_h5ad(folder / "corpus" / f"{number}.h5ad")
    (folder / "transcription_factors.txt").write_text("\n".join(genes.index[:12]) + "\n")
    classes = ["sensitive", "insensitive"] * 30
    table = pd.DataFrame({"gene_id": genes.iloc[4:64], "class": classes})
    table.to_csv(folder / "dosage_sensitivity_TFs.tsv", sep="\t", index=False)
    write_original(folder, genes)
    write_configs(folder / "configs")


def made_up_cells() -> tuple[ad.AnnData, pd.Series]:
    """The toy cells with symbols and more columns, and their genes."""
    cells = toy_cells()
    symbols = [*_NAMED, *(f"GENE{number}" for number in range(len(_NAMED), GENES))]
    genes = pd.Series(cells.var_names.to_numpy(), symbols)
    cells.var_names = symbols
    cells.obs["cell_type"] = cells.obs.pop("kind")
    add_columns(cells, np.arange(cells.n_obs) // 4 % 3)
    return cells, genes


def real_cells(path: Path) -> tuple[ad.AnnData, pd.Series]:
    """Some cells of the three commonest types of a file, the longest among them, and their genes.

    Only a few of them are to be perturbed in all their genes.
    """
    cells = ad.read_h5ad(path)
    expressed = np.asarray((cells.X > 0).sum(axis=1)).ravel()
    common = cells.obs["cell_type"].value_counts().index[:3]
    order = np.argsort(-expressed)
    rows = order[cells.obs["cell_type"].isin(common).to_numpy()[order]]
    cells = cells[np.sort(rows[:: len(rows) // _REAL_CELLS][:_REAL_CELLS])].copy()
    found = np.asarray((cells.X > 0).sum(axis=0)).ravel()
    genes = cells.var["ensembl_id"].astype(str).iloc[np.argsort(-found, kind="stable")]
    number = np.arange(cells.n_obs)
    add_columns(cells, np.where(number % 32 == 0, 2, number // 4 % 2))
    return cells, pd.concat([genes[_NAMED], genes.drop(_NAMED)])


def add_columns(cells: ad.AnnData, disease: np.ndarray) -> None:
    """Adds donors, diseases (int [cells]) and tissues."""
    cells.obs["donor"] = [f"donor{n % 12}" for n in range(cells.n_obs)]
    cells.obs["disease"] = np.array(["healthy", "mild", "dilated"])[disease]
    cells.obs["tissue"] = "blood"


def with_targets(cells: ad.AnnData, targets: list[str]) -> ad.AnnData:
    """The cells as those of a screen: half of them controls, the others with a gene perturbed."""
    labels = ["non-targeting", targets[0], "non-targeting", targets[1]]
    cells = cells.copy()
    cells.obs["target_gene"] = [labels[n % len(labels)] for n in range(cells.n_obs)]
    return cells


def write_census_of(folder: Path, cells: ad.AnnData, genes: pd.Series) -> None:
    """Writes a Census of two organisms, for documents that read one."""
    human = cells.copy()
    human.var = pd.DataFrame({"ensembl_id": genes[cells.var_names].to_numpy()}, cells.var_names)
    human = as_census_cells(human)
    write_census(folder / "census", {"homo_sapiens": human, "mus_musculus": human[:9].copy()})


def write_original(folder: Path, genes: pd.Series) -> None:
    """Writes dictionaries of genes (symbol -> id) and a model in the files of the original."""
    dictionaries = folder / "dictionaries" / "v1_gc30M"
    dictionaries.mkdir(parents=True)
    ids = sorted(genes)
    contents = {
        "token_dictionary": {"<pad>": 0, "<mask>": 1} | {gene: 2 + n for n, gene in enumerate(ids)},
        "gene_median_dictionary": dict.fromkeys(ids, 1.0),
        "ensembl_mapping_dict": genes.to_dict() | dict(zip(ids, ids, strict=True)),
        "gene_name_id_dict": genes.to_dict(),
    }
    for name, content in contents.items():
        (dictionaries / f"{name}_gc30M.pkl").write_bytes(pickle.dumps(content))
    vocabulary = read_original_vocabulary(dictionaries)
    model = dataclasses.replace(toy_model(layers=6, genes=len(ids)), vocabulary=vocabulary)
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
