"""The original's dictionaries of gene classes: pickles of class -> genes, as tables of ours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, suffix_of
from geneformer_jax.common.provenance import describe_run
from geneformer_jax.common.tables import write_csv
from geneformer_jax.interop.original_dictionaries import PICKLES
from geneformer_jax.interop.restricted_pickle import (
    LARGEST_FILE,
    STAND_INS,
    PickleSource,
    read_pickle,
)

TARGETS = (".json", ".tsv", ".csv")
_LISTS = (list, tuple, set, frozenset)


def is_pickle(path: Path) -> bool:
    """Whether a path is a file named as a pickle."""
    return path.is_file() and suffix_of(path) in PICKLES


def read_gene_classes(path: Path) -> dict[str, list[str]]:
    """Reads class -> genes, executing nothing that the file names.

    Raises:
      InputError: the file is no such dictionary, or is refused.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{path} is larger than 64 MiB, no list of genes is; check it")
    holds = "a dictionary of gene classes holds lists of text"
    found = read_pickle(path.read_bytes(), PickleSource(path, holds, STAND_INS))
    if not (isinstance(found, dict) and found and all(map(_is_class, found.items()))):
        raise InputError(
            f'{path} holds no dictionary of the form {{"class": ["gene", ...], ...}}; name one of '
            "gene classes, or the folder with the original's token dictionary and medians"
        )
    return {str(name): list(dict.fromkeys(genes)) for name, genes in found.items()}


def import_gene_classes(source: Path, target: Path) -> dict[str, int]:
    """Writes gene classes as a table that `finetune` and `attend` read; returns genes per class.

    Args:
      source: the original's pickle.
      target: a new file: .json, class -> genes, or .tsv or .csv with the columns gene_id and class.

    Raises:
      InputError: as `read_gene_classes`, or the target exists or ends otherwise.
    """
    if suffix_of(target) not in TARGETS:
        raise InputError(f"the target {target} must end in one of {', '.join(TARGETS)}")
    if target.exists():
        raise InputError(f"{target} exists and nothing is overwritten; name a new file")
    classes = read_gene_classes(source)
    counts = {name: len(genes) for name, genes in classes.items()}
    run = describe_run("convert", {"source": source, "target": target}, [source], counts)
    with atomic_write(target.with_suffix(".provenance.json")) as aside:
        aside.write_text(json.dumps(run, indent=2, default=str) + "\n")
    with atomic_write(target) as aside:
        _write(classes, aside, suffix_of(target))
    return counts


def _write(classes: Mapping[str, list[str]], path: Path, suffix: str) -> None:
    if suffix == ".json":
        path.write_text(json.dumps(classes, indent=1) + "\n")
        return
    rows = [(gene, name) for name, genes in classes.items() for gene in genes]
    separator = "\t" if suffix == ".tsv" else ","
    write_csv(pd.DataFrame(rows, columns=["gene_id", "class"]), path, sep=separator)


def _is_class(item: tuple[Any, Any]) -> bool:
    name, genes = item
    named = type(name) in (str, int)
    return named and type(genes) in _LISTS and len(genes) > 0 and all(type(g) is str for g in genes)
