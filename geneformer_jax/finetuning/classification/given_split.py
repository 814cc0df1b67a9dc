"""Splits that users bring: tables of ids and sides, or a list of ids for each side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.tables import named_column, read_id_table
from geneformer_jax.finetuning.classification.splits import (
    SIDES,
    Split,
    align_groups,
    check_ids,
    find_problem,
    fold_rows,
)

ID_COLUMNS = ("id", "cell_id", "gene_id", "ensembl_id", "gene", "cell", "barcode")


def given_split(
    paths: Mapping[str, Path | str] | Path | str,
    labels: pd.Series,
    groups: pd.Series | None = None,
) -> Split:
    """Reads a split from the user's files.

    Args:
      paths: side -> file of ids (one fold; see `tables.read_id_table`), or one table with
        columns id, side and, for several folds, fold: such as `Split.write` writes.
      labels: class of each id that takes part, indexed by id.
      groups: group of each id, indexed by id, or None.

    Returns:
      The split of the listed ids; ids of `labels` that are not listed are on no side.

    Raises:
      InputError: an id is unknown, or listed twice in a fold; a group stands on both sides; train
        or test ids are missing; a fold lacks a class.
    """
    check_ids(labels.index)
    table = _read_sides(paths) if isinstance(paths, Mapping) else _read_split_table(Path(paths))
    unknown = table.loc[~table["id"].isin(labels.index), "id"].unique()
    if len(unknown):
        raise InputError(
            f'the given split has {len(unknown):,} ids that are unknown or have no label, first "'
            f'{unknown[0]}"{did_you_mean(unknown[0], labels.index[:100_000])}; leave them out'
        )
    twice = table[table.duplicated(["id", "fold"])]
    if len(twice):
        row = twice.iloc[0]
        raise InputError(
            f'the given split lists "{row["id"]}" twice in fold {row["fold"]} ({len(twice):,} ids '
            "in all); an id stands on one side once"
        )
    split = Split(table.reset_index(drop=True))
    aligned = None if groups is None else align_groups(labels, groups)
    if problem := find_problem(split, labels, aligned):
        raise InputError(f"the given split cannot be used: {problem}; change it")
    return split


def _read_sides(paths: Mapping[str, Path | str]) -> pd.DataFrame:
    parts = []
    for side, path in paths.items():
        if side not in SIDES:
            raise InputError(f'"{side}" is no side of a split; use {", ".join(SIDES)}')
        rows = read_id_table(path)
        ids = rows[named_column(rows, ID_COLUMNS, "ids", path)].drop_duplicates()
        parts.append(fold_rows(pd.Index(ids), 0, np.full(len(ids), side, object)))
    return pd.concat(parts, ignore_index=True)


def _read_split_table(path: Path) -> pd.DataFrame:
    rows = read_id_table(path)
    ids = rows[named_column(rows, ID_COLUMNS, "ids", path)]
    side = rows[named_column(rows, ("side",), "sides", path)]
    wrong = sorted(set(side) - set(SIDES))
    if wrong:
        raise InputError(f'{path} has a side "{wrong[0]}"; use {", ".join(SIDES)}')
    fold = rows["fold"] if "fold" in rows else pd.Series("0", index=rows.index)
    names = sorted(fold.unique(), key=lambda name: (len(name), name))
    numbers = fold.map({name: number for number, name in enumerate(names)})
    return pd.DataFrame({"id": ids, "fold": numbers.astype(int), "side": side})
