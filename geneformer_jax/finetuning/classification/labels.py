"""Classes of genes and of cells: read, mapped to known ids; what is left out is counted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.tables import CLASS_COLUMNS, GENE_COLUMNS, named_column, read_id_table
from geneformer_jax.finetuning.classification.config import CONFLICTS
from geneformer_jax.inference.columns import check_columns

OUTSIDE, TWICE, CONFLICT = (
    "not in the vocabulary",
    "listed again in the same class",
    "in several classes",
)
NOWHERE = "in none of the cells"
NO_LABEL, RARE, NOT_WANTED = "no label", "label too rare", "label not asked for"
TOO_SMALL = "class too small to be split"
_NAMED = 8
# Beyond it a float is whole whatever it is.
_LARGEST_WHOLE = 2**53


@dataclass(frozen=True, eq=False)
class Labels:
    """The class of each gene or cell.

    Attributes:
      classes: names of the C classes, in the order of the logits.
      of: class name of each id that takes part, indexed by id (text).
      dropped: reason -> ids (as they were given) that take no part.
    """

    classes: tuple[str, ...]
    of: pd.Series
    dropped: Mapping[str, np.ndarray]

    def without(self, ids: Iterable[str], reason: str) -> "Labels":
        """Returns the labels of all others.

        Raises:
          InputError: fewer than two classes, or a class without members, would be left.
        """
        gone = self.of.index.isin(list(ids))
        left = self.of[~gone]
        _check_classes(self.classes, left, f"the labels (those {reason} left out)")
        dropped = {**self.dropped, reason: self.of.index[gone].to_numpy(object)}
        return Labels(self.classes, left, dropped)

    def without_classes(self, names: Iterable[str], reason: str) -> "Labels":
        """Returns the labels of all other classes.

        Raises:
          InputError: fewer than two classes would be left.
        """
        gone = self.of.astype(str).isin(list(names))
        classes = tuple(name for name in self.classes if name not in set(names))
        left = self.of[~gone]
        _check_classes(classes, left, f"what is left without each {reason}")
        return Labels(classes, left, {**self.dropped, reason: self.of.index[gone].to_numpy(object)})

    def describe(self, unit: str) -> list[str]:
        """Returns lines that count classes and what was left out; `unit` is "gene" or "cell"."""
        sizes = self.of.value_counts()
        listed = ", ".join(f"{name} {sizes.get(name, 0):,}" for name in self.classes)
        lines = [f"{len(self.of):,} {unit}s in {len(self.classes)} classes: {listed}"]
        for reason, ids in self.dropped.items():
            if len(ids):
                lines.append(f"{len(ids):,} {unit}s left out, {reason}: {_first(ids)}")
        return lines


def read_gene_labels(
    path: Path | str, vocabulary: GeneVocabulary, conflicts: str = "refuse"
) -> Labels:
    """Reads classes of genes and finds the genes in a vocabulary.

    Args:
      path: a table with a column of classes (`class` or `label`) and one of genes (ids or symbols);
        JSON {"class": ["gene", ...]}; or "class=file,class=file", each file listing the genes of
        one class (see `tables.read_id_table`).
      vocabulary: ids are mapped as when cells are tokenised, symbols also by its own symbols.
      conflicts: how a gene in several classes is treated: "refuse", or "drop" it from all.

    Returns:
      Labels by gene id of the vocabulary. Classes are in the order of the file, as in the
      original.

    Raises:
      InputError: the file cannot be read, a gene is in several classes, or no gene is known.
    """
    if conflicts not in CONFLICTS:
        raise InputError(f'conflicts "{conflicts}" must be one of {", ".join(CONFLICTS)}')
    table = _read_classes(str(path))
    table = table[(table["gene"] != "") & (table["class"] != "")]
    tokens = vocabulary.tokens_of(table["gene"], symbols="names")
    known = tokens >= 0
    if not known.any():
        raise InputError(
            f'none of the {len(tokens):,} genes of {path} is in the vocabulary, first "'
            f'{table["gene"].iloc[0]}"; check its species and its kind of ids'
        )
    found = table[known].assign(id=[vocabulary.gene_id_of(int(token)) for token in tokens[known]])
    several = found.groupby("id")["class"].transform("nunique") > 1
    if several.any() and conflicts == "refuse":
        first = found[several].iloc[0]
        both = found.loc[found["id"] == first["id"], "class"].unique()
        names = " and ".join(f'"{name}"' for name in both)
        raise InputError(
            f"{found.loc[several, 'id'].nunique()} genes of {path} are in several classes, first "
            f'"{first["gene"]}" in {names}; take them out of all but one, or ask to drop them'
        )
    repeated = found.duplicated(["id", "class"]) & ~several
    kept = found[~several & ~repeated]
    dropped = {
        OUTSIDE: table.loc[~known, "gene"].unique(),
        CONFLICT: found.loc[several, "gene"].unique(),
        TWICE: found.loc[repeated, "gene"].to_numpy(),
    }
    classes = tuple(dict.fromkeys(table["class"]))
    of = pd.Series(kept["class"].to_numpy(object), index=pd.Index(kept["id"], name="id"))
    _check_classes(classes, of, str(path))
    return Labels(classes, of.rename("class"), dropped)


def read_cell_labels(
    obs: pd.DataFrame,
    column: str,
    min_fraction: float = 0.0,
    min_cells: int = 1,
    wanted: Iterable[str] = (),
) -> Labels:
    """Takes classes of cells from a column of obs.

    Args:
      obs: [cells] indexed by cell id.
      column: of labels; cells without one ("", missing) are left out.
      min_fraction: classes with a smaller fraction of the labelled cells are left out; the
        original's cell type annotation uses 0.005.
      min_cells: classes with fewer cells are left out.
      wanted: the only classes that take part; all if empty.

    Returns:
      Labels by cell id. Classes are sorted, so that they are the same in every run (the original's
      order changes from process to process).

    Raises:
      InputError: no such column, a column of measurements, or fewer than two classes.
    """
    check_columns(obs, [column])
    if pd.api.types.is_float_dtype(obs[column]) and not _whole(obs[column]):
        raise InputError(
            f'column "{column}" holds measurements, not classes; name a column of labels, or fit '
            "a regression"
        )
    labels = _as_text(obs[column])
    labels.index = obs.index.astype(str)
    ids = labels.index
    missing = labels == ""
    wanted = list(wanted)
    unwanted = ~missing & ~labels.isin(wanted) if wanted else pd.Series(False, index=ids)
    taking_part = ~missing & ~unwanted
    sizes = labels[taking_part].value_counts()
    smallest = max(min_cells, min_fraction * int(sizes.sum()))
    rare = taking_part & labels.isin(sizes.index[sizes < smallest])
    kept = labels[taking_part & ~rare]
    absent = [name for name in wanted if name not in sizes]
    if absent:
        known = ", ".join(map(str, labels[~missing].unique()[:_NAMED]))
        raise InputError(f'column "{column}" has no class "{absent[0]}"; it has {known}')
    classes = tuple(sorted(kept.unique()))
    _check_classes(classes, kept, f'column "{column}"')
    dropped = {
        NO_LABEL: ids[missing].to_numpy(),
        NOT_WANTED: ids[unwanted].to_numpy(),
        RARE: ids[rare].to_numpy(),
    }
    return Labels(classes, kept.rename("class").rename_axis("id"), dropped)


def _read_classes(path: str) -> pd.DataFrame:
    """Returns a table with columns `class` and `gene`, of text."""
    if "=" in path:
        parts = []
        for text in path.split(","):
            name, separator, file = text.partition("=")
            if not separator or not name.strip() or not file.strip():
                raise InputError(f'"{text}" must have the form class=file')
            rows = read_id_table(file.strip())
            genes = rows[named_column(rows, GENE_COLUMNS, "genes", file)]
            parts.append(pd.DataFrame({"class": name.strip(), "gene": genes}))
        return pd.concat(parts, ignore_index=True)
    rows = read_id_table(path)
    classes = named_column(rows, CLASS_COLUMNS, "classes", path)
    genes = named_column(rows.drop(columns=classes), GENE_COLUMNS, "genes", path)
    return pd.DataFrame({"class": rows[classes], "gene": rows[genes]})


def _check_classes(classes: tuple[str, ...], of: pd.Series, where: str) -> None:
    empty = [name for name in classes if name not in set(of)]
    if empty:
        raise InputError(
            f'class "{empty[0]}" of {where} has no member left; see which were left out, or take '
            "the class out"
        )
    if len(classes) < 2:
        have = f' ("{classes[0]}")' if classes else ""
        number = f"{len(classes)} class{'' if len(classes) == 1 else 'es'}{have}"
        raise InputError(f"{where} has {number}; a classifier needs two or more")


def _whole(values: pd.Series) -> bool:
    known = values.dropna()
    return bool(((known == known.round()) & (known.abs() < _LARGEST_WHOLE)).all())


def _as_text(values: pd.Series) -> pd.Series:
    """Text of labels, "" where missing; 3.0 (whole numbers beside missing ones) is "3"."""
    if pd.api.types.is_float_dtype(values):
        values = values.astype("Int64")
    missing = values.isna().to_numpy()
    text = values.astype("object").map(str).str.strip()
    text[missing] = ""
    return text.astype(object)


def _first(ids: np.ndarray) -> str:
    shown = ", ".join(map(str, ids[:_NAMED]))
    return shown + (", ..." if len(ids) > _NAMED else "")
