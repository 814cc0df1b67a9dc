"""Which results lie below a folder: found once, before anything is shown.

A page chooses among the names found here and never gives a path. Links that lead out of the folder
are not followed, and a result that holds one is left out.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py

from geneformer_jax.cells.links import holds_link_out, leads_out, reads_elsewhere
from geneformer_jax.cells.store.layout import DATASET_INFO, STORE
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import suffix_of
from geneformer_jax.common.provenance import FILE_NAME
from geneformer_jax.embedding.embedder import KEY
from geneformer_jax.embedding.output import SUFFIXES, provenance_of, table_path
from geneformer_jax.finetuning.classification.folder import LABELS, SPLIT
from geneformer_jax.perturbation.layout import EDITS
from geneformer_jax.training.telemetry import METRICS

# Folders that hold nothing to show, and may hold very many files.
_SKIPPED = ("checkpoints", "records", "tensorboard")
# What the page finds its results under.
RESULTS = "results"
_OF_CELLS = ("cell", "cls")


class Results(NamedTuple):
    """Results of a folder: name -> path for each kind; names are paths within the folder.

    Attributes:
      folder: that was looked through.
      embeddings: files of embedded cells.
      gene_embeddings: files of embedded genes.
      stores: cell stores.
      perturbations: folders that perturb wrote.
      classifiers: folders of fine-tuned classifiers.
      runs: folders with metrics of training.
      left_out: what was not taken and why, a line each.
    """

    folder: Path
    embeddings: dict[str, Path]
    gene_embeddings: dict[str, Path]
    stores: dict[str, Path]
    perturbations: dict[str, Path]
    classifiers: dict[str, Path]
    runs: dict[str, Path]
    left_out: list[str]

    def describe(self) -> str:
        """Says how many there are of each kind."""
        kinds = {name: each for name, each in self._asdict().items() if isinstance(each, dict)}
        return ", ".join(f"{name.replace('_', ' ')}: {len(each)}" for name, each in kinds.items())


def find_results(folder: Path | str) -> Results:
    """Looks through a folder and all folders below it.

    Raises:
      InputError: it is no folder, or holds nothing that a command wrote.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise InputError(f"`folder` {folder} is no folder; name one with results of commands")
    results = Results(root, {}, {}, {}, {}, {}, {}, [])
    for path, names in _folders(root, results.left_out):
        _add_folder(results, path, set(names))
        for name in names:
            _add_file(results, path / name)
    if not any(isinstance(each, dict) and each for each in results):
        why = f" ({'; '.join(results.left_out[:3])})" if results.left_out else ""
        raise InputError(
            f"`folder` {folder} holds no embeddings, cell store, perturbation or run{why}; name a "
            "folder with what embed, tokenize, perturb, pretrain or finetune wrote"
        )
    return results


def _folders(root: Path, left_out: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Each folder to look into with the names of its files, none of them a link that leads out."""
    for place, folders, files in os.walk(root):
        path = Path(place)
        leading_out = [each for each in (*folders, *files) if leads_out(path / each, root)]
        left_out += [f"{_name(path / each, root)} leads out of the folder" for each in leading_out]
        folders[:] = sorted(
            each
            for each in folders
            if each not in _SKIPPED and not each.startswith(".") and not each.endswith(".parts")
            and not (path / each).is_symlink()
        )  # fmt: skip
        kept = sorted(each for each in set(files) - set(leading_out) if (path / each).is_file())
        if {STORE, EDITS} & set(kept):
            folders.clear()
        yield path, kept


def _add_folder(results: Results, path: Path, names: set[str]) -> None:
    kinds = (
        (results.stores, {STORE, DATASET_INFO}),
        (results.perturbations, {EDITS, FILE_NAME}),
        (results.classifiers, {SPLIT, LABELS, FILE_NAME}),
        (results.runs, {METRICS}),
    )
    found = [kind for kind, needed in kinds if needed <= names]
    if found and holds_link_out(path, results.folder):
        results.left_out.append(f"{_name(path, results.folder)} holds a link out of the folder")
        return
    for kind in found:
        kind[_name(path, results.folder)] = path


def _add_file(results: Results, path: Path) -> None:
    """Adds a file of embeddings."""
    suffix = suffix_of(path)
    if suffix not in SUFFIXES or (suffix == ".npy" and not table_path(path).is_file()):
        return
    if suffix == ".npy" and leads_out(table_path(path), results.folder):
        return
    name = _name(path, results.folder)
    try:
        if reads_elsewhere(path):
            results.left_out.append(f"{name} reads other files")
            return
        mode = provenance_of(path).get("counts", {}).get("mode")
        if mode in _OF_CELLS or (mode is None and suffix == ".h5ad" and _has_embedding(path)):
            results.embeddings[name] = path
        elif mode == "gene":
            results.gene_embeddings[name] = path
    except (OSError, ValueError, KeyError, AttributeError) as error:
        results.left_out.append(f"{name} cannot be read ({' '.join(str(error).split())[:80]})")


def _has_embedding(path: Path) -> bool:
    """Whether an .h5ad of someone else holds embeddings of ours."""
    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        return any(key.startswith(KEY) for key in file.get("obsm", {}))


def _name(path: Path, root: Path) -> str:
    return root.name if path == root else path.relative_to(root).as_posix()
