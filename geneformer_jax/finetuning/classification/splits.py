"""Splits: which cells or genes a classifier is trained on, and which it is tested on.

Ids (of cells or genes) are split, never rows of encodings: a gene that is held out is held out
of every cell. Where a group (donor, batch) is named, all of it stands on one side of each fold.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.tables import named_column, read_id_table

SIDES = ("train", "valid", "test")
ID_COLUMNS = ("id", "cell_id", "gene_id", "ensembl_id", "gene", "cell", "barcode")
# Columns of obs that name a person or a measurement, whose cells resemble each other.
DONOR_COLUMNS = (
    "donor",
    "donor_id",
    "patient",
    "patient_id",
    "individual",
    "subject",
    "subject_id",
    "sample",
    "sample_id",
    "batch",
)


@dataclass(frozen=True, eq=False)
class Split:
    """Sides of ids in each fold.

    Attributes:
      table: [ids x folds] columns `id` (text), `fold` (int, from 0) and `side` (one of SIDES).
    """

    table: pd.DataFrame

    @property
    def folds(self) -> int:
        """Number of folds."""
        return int(self.table["fold"].max()) + 1

    def ids(self, fold: int, side: str) -> np.ndarray:
        """Returns [n] str the ids on a side of a fold, in the order in which they were given."""
        chosen = (self.table["fold"] == fold) & (self.table["side"] == side)
        return self.table.loc[chosen, "id"].to_numpy(dtype=object)

    def write(self, path: Path | str) -> None:
        """Writes the table as .parquet or .csv, whole or not at all."""
        path = Path(path)
        with atomic_write(path) as aside:
            if path.suffix == ".csv":
                self.table.to_csv(aside, index=False)
            else:
                self.table.to_parquet(aside, index=False)


@dataclass(frozen=True)
class SplitRule:
    """How ids are split into folds and sides.

    Attributes:
      folds: number of folds; each id is tested in one of them. 1 holds out `test_fraction` once.
      test_fraction: of the ids (of the groups, where given), used where folds is 1.
      valid_fraction: of the ids that are not tested, held out for early stopping and search.
      seed: of the shuffle; 0 splits genes as the original does.
    """

    folds: int = 5
    test_fraction: float = 0.2
    valid_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.folds < 1:
            raise InputError(f"{self.folds} folds were asked for; ask for at least 1")
        if not 0 < self.test_fraction < 1:
            raise InputError(f"test_fraction is {self.test_fraction}; it must be between 0 and 1")
        if not 0 <= self.valid_fraction < 1:
            raise InputError(f"valid_fraction is {self.valid_fraction}; it must be in [0, 1)")


def make_split(labels: pd.Series, rule: SplitRule, groups: pd.Series | None = None) -> Split:
    """Splits ids, stratified by class, with no group on both sides.

    Folds are those of sklearn's StratifiedKFold (shuffled), as in the original's classification of
    genes: of ids, or of groups that are of one class each (donors of a disease). Groups that hold
    several classes (donors and cell types) are split by StratifiedGroupKFold; one fold of them
    is the first of about 1 / test_fraction.

    Args:
      labels: class of each id, indexed by id; the order matters, as the shuffle begins with it.
      rule: number of folds, fractions and seed.
      groups: group of each id, indexed by id, or None.

    Raises:
      InputError: ids are repeated, a class has too few members or groups, an id has no group, or
        a fold would lack a class.
    """
    _check_ids(labels.index)
    aligned = None if groups is None else _aligned_groups(labels, groups)
    check_members(labels, rule.folds, aligned)
    parts = []
    for fold, test in enumerate(_test_sides(labels, rule, aligned)):
        side = np.full(len(labels), "train", object)
        side[test] = "test"
        if rule.valid_fraction:
            rest = np.flatnonzero(~test)
            kept = None if aligned is None else aligned.iloc[rest]
            side[rest[_hold_out(labels.iloc[rest], kept, rule.valid_fraction, rule.seed)]] = "valid"
        parts.append(_fold_table(labels.index, fold, side))
    split = Split(pd.concat(parts, ignore_index=True))
    check_split(split, labels, aligned)
    return split


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
    _check_ids(labels.index)
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
    check_split(split, labels, None if groups is None else _aligned_groups(labels, groups))
    return split


def check_members(labels: pd.Series, folds: int, groups: pd.Series | None = None) -> None:
    """Raises InputError if a class is too small to be learned and tested in each fold.

    Without groups a class needs as many members as there are folds, and at least two. With groups
    it needs two of them, to be on both sides; as many groups as folds where each group is of one
    class only, such as donors of a disease.
    """
    sizes = labels.value_counts()
    if len(sizes) < 2:
        only = f' ("{sizes.index[0]}")' if len(sizes) else ""
        raise InputError(f"there is {len(sizes)} class{only}; a classifier needs two or more")
    minimum, what = max(folds, 2), "members"
    if groups is not None:
        pairs = pd.DataFrame({"class": labels, "group": groups}).drop_duplicates()
        sizes, what = pairs["class"].value_counts(), f'groups ("{groups.name}")'
        minimum = max(folds, 2) if _is_nested(labels, groups) else 2
        if folds > pairs["group"].nunique():
            raise InputError(
                f'{folds} folds need as many groups, but "{groups.name}" has '
                f"{pairs['group'].nunique()}; ask for fewer folds"
            )
    few = sizes[sizes < minimum].sort_values()
    if len(few):
        listed = ", ".join(f'"{name}" {count}' for name, count in few.items())
        raise InputError(
            f"classes with too few {what} for {folds} folds: {listed}; each needs at least "
            f"{minimum}; ask for fewer folds or leave the class out"
        )


def check_split(split: Split, labels: pd.Series, groups: pd.Series | None = None) -> None:
    """Raises InputError if a fold cannot be learned or tested, or a group leaks.

    Each fold needs at least two classes on the train and on the test side, and on the train side
    every class of the test side. No group may stand on two sides of a fold.
    """
    table = split.table.assign(label=labels.reindex(split.table["id"]).to_numpy())
    if groups is not None:
        table["group"] = groups.reindex(table["id"]).to_numpy()
    for fold, rows in table.groupby("fold"):
        if groups is not None:
            _check_leak(rows, fold, groups.name)
        classes = {side: set(rows.loc[rows["side"] == side, "label"]) for side in SIDES}
        for side in ("train", "test"):
            if len(classes[side]) < 2:
                have = ", ".join(f'"{name}"' for name in classes[side]) or "none"
                raise InputError(
                    f"fold {fold} has fewer than two classes on its {side} side ({have}); ask for "
                    "fewer folds, or give a split with both"
                )
        unseen = sorted(map(str, (classes["test"] | classes["valid"]) - classes["train"]))
        if unseen:
            raise InputError(
                f'fold {fold} tests class "{unseen[0]}", which its train side lacks; ask for other '
                "folds, or leave the class out"
            )


def leak_warnings(obs: pd.DataFrame, split: Split, group: str = "") -> list[str]:
    """Returns a line for each donor-like obs column whose cells stand on both sides of a fold.

    Cells of one donor resemble each other: with some of them trained on, the others are easier to
    classify than cells of a new donor.

    Args:
      obs: [cells] indexed by cell id.
      split: of cells.
      group: the column that the split holds out whole, of which no warning is given; "" for none.
    """
    lines = []
    for column in obs.columns:
        if column == group or str(column).lower() not in DONOR_COLUMNS:
            continue
        first = split.table[split.table["fold"] == 0]
        values = obs[column].astype("object").reindex(first["id"]).to_numpy()
        tested = (first["side"] == "test").to_numpy()
        shared = set(pd.Series(values[tested]).dropna()) & set(pd.Series(values[~tested]).dropna())
        if shared and pd.Series(values).nunique() > 1:
            lines.append(
                f'warning: {len(shared)} values of "{column}" stand on both sides of the split, so '
                f"scores need not hold for a new {column}; to hold whole ones out, set "
                f"--config.task.group={column}"
            )
    return lines


def _check_ids(ids: pd.Index) -> None:
    if not ids.is_unique:
        repeated = ids[ids.duplicated()][0]
        raise InputError(f'id "{repeated}" occurs twice; ids must be unique to be split')


def _aligned_groups(labels: pd.Series, groups: pd.Series) -> pd.Series:
    aligned = groups.reindex(labels.index)
    missing = aligned.isna()
    if missing.any():
        raise InputError(
            f'{int(missing.sum()):,} ids have no value of "{groups.name}", first "'
            f'{labels.index[missing.to_numpy()][0]}"; leave them out, or name another group'
        )
    return aligned.astype(str).rename(groups.name)


def _test_sides(
    labels: pd.Series, rule: SplitRule, groups: pd.Series | None
) -> Iterable[np.ndarray]:
    """Yields bool [ids] for each fold: who is tested."""
    if rule.folds == 1:
        yield _hold_out(labels, groups, rule.test_fraction, rule.seed)
        return
    if groups is not None and not _is_nested(labels, groups):
        yield from _mixed_folds(labels, groups, rule.folds, rule.seed)
        return
    units = labels if groups is None else _group_labels(labels, groups)
    splitter = StratifiedKFold(rule.folds, shuffle=True, random_state=rule.seed)
    for _, test in splitter.split(units, units):
        yield _members(units.index[test], labels, groups)


def _hold_out(
    labels: pd.Series, groups: pd.Series | None, fraction: float, seed: int
) -> np.ndarray:
    """Returns bool [ids]: about `fraction` of the ids, every class among them, whole groups."""
    if groups is not None and not _is_nested(labels, groups):
        folds = min(max(round(1 / fraction), 2), groups.nunique())
        return next(_mixed_folds(labels, groups, folds, seed))
    units = labels if groups is None else _group_labels(labels, groups)
    what = "ids" if groups is None else f'groups ("{groups.name}")'
    try:
        _, held = train_test_split(
            np.arange(len(units)), test_size=fraction, stratify=units, random_state=seed
        )
    except ValueError as error:
        raise InputError(
            f"{fraction:g} of {len(units)} {what} cannot hold every class ({error}); hold out "
            "another fraction"
        ) from error
    return _members(units.index[held], labels, groups)


def _mixed_folds(
    labels: pd.Series, groups: pd.Series, folds: int, seed: int
) -> Iterator[np.ndarray]:
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for _, test in splitter.split(labels, labels, groups):
        mask = np.zeros(len(labels), bool)
        mask[test] = True
        yield mask


def _is_nested(labels: pd.Series, groups: pd.Series) -> bool:
    """Whether each group is of one class only, as donors of a disease are."""
    return bool((labels.groupby(groups.to_numpy()).nunique() == 1).all())


def _group_labels(labels: pd.Series, groups: pd.Series) -> pd.Series:
    """Class of each group, indexed by group, for groups of one class."""
    return labels.groupby(groups.to_numpy()).first()


def _members(units: pd.Index, labels: pd.Series, groups: pd.Series | None) -> np.ndarray:
    """Returns bool [ids]: the ids that are units, or whose group is one."""
    return np.asarray((labels.index if groups is None else groups).isin(units))


def _fold_table(ids: pd.Index, fold: int, side: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"id": ids.astype(str), "fold": fold, "side": side})


def _read_sides(paths: Mapping[str, Path | str]) -> pd.DataFrame:
    parts = []
    for side, path in paths.items():
        if side not in SIDES:
            raise InputError(f'"{side}" is no side of a split; use {", ".join(SIDES)}')
        rows = read_id_table(path)
        ids = rows[named_column(rows, ID_COLUMNS, "ids", path)].drop_duplicates()
        parts.append(_fold_table(pd.Index(ids), 0, np.full(len(ids), side, object)))
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


def _check_leak(rows: pd.DataFrame, fold: int, name: object) -> None:
    sides = rows.groupby("group")["side"].nunique()
    leaking = sides.index[sides > 1]
    if len(leaking):
        listed = ", ".join(f'"{each}"' for each in leaking[:5])
        raise InputError(
            f'{len(leaking)} groups of "{name}" stand on several sides of fold {fold}, first '
            f"{listed}; put all of a group on one side"
        )
