"""Splits: which cells or genes a classifier is trained on, and which it is tested on.

Ids (of cells or genes) are split, never rows of encodings: a gene that is held out is held out
of every cell. Where a group (donor, batch) is named, all of it stands on one side of each fold.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, suffix_of
from geneformer_jax.common.tables import write_csv
from geneformer_jax.finetuning.classification.config import SplitRule

SIDES = ("train", "valid", "test")
# Classes named in a message.
_NAMED = 8
# Fractions that are tried where those asked for cannot be had, and how often in all.
_FRACTIONS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
_TRIES, _MANY_IDS, _TRIES_OF_MANY = 80, 20_000, 8


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
            if suffix_of(path) == ".csv":
                write_csv(self.table, aside)
            else:
                self.table.to_parquet(aside, index=False)


class _CannotSplitError(InputError):
    """Why a rule cannot be kept, without a remedy."""


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
    check_ids(labels.index)
    aligned = None if groups is None else align_groups(labels, groups)
    _check_members(labels, rule, aligned)
    try:
        return _split(labels, rule, aligned)
    except _CannotSplitError as error:
        what = _what(rule, aligned)
        remedy = _possible(labels, rule, aligned) or (
            f"no other fraction can be had either: give more {what} of each class, or fewer classes"
        )
        raise InputError(f"{error}; {remedy}") from None


def _split(labels: pd.Series, rule: SplitRule, groups: pd.Series | None) -> Split:
    parts = []
    for fold, test in enumerate(_test_sides(labels, rule, groups)):
        side = np.full(len(labels), "train", object)
        side[test] = "test"
        if rule.valid_fraction:
            rest = np.flatnonzero(~test)
            kept = None if groups is None else groups.iloc[rest]
            valid = _hold_out(labels.iloc[rest], kept, rule, "valid_fraction")
            side[rest[valid]] = "valid"
        parts.append(fold_rows(labels.index, fold, side))
    split = Split(pd.concat(parts, ignore_index=True))
    if problem := find_problem(split, labels, groups):
        raise _CannotSplitError(problem)
    return split


def _what(rule: SplitRule, groups: pd.Series | None) -> str:
    return rule.noun if groups is None else f'groups ("{groups.name}")'


def _possible(labels: pd.Series, rule: SplitRule, groups: pd.Series | None) -> str:
    """Returns which other fractions or folds, as near as can be, give a split; "" if none do."""
    tries = _TRIES if len(labels) <= _MANY_IDS else _TRIES_OF_MANY
    for changed in list(_nearest_rules(rule))[:tries]:
        if small_classes(labels, changed, groups):
            continue
        try:
            _split(labels, changed, groups)
        except _CannotSplitError:
            continue
        names = ("folds", "test_fraction", "valid_fraction")
        changes = [
            f"{rule.key(name)}={getattr(changed, name):g}"
            for name in names
            if getattr(changed, name) != getattr(rule, name)
        ]
        return f"{' and '.join(changes)} would do"
    return ""


def _nearest_rules(rule: SplitRule) -> list[SplitRule]:
    """Returns rules with other fractions, or one fold, those with the fewest changes first."""
    tests = sorted({rule.test_fraction, *_FRACTIONS}) if rule.folds == 1 else [rule.test_fraction]
    # No validation side at all is the last thing to try.
    valids = sorted({rule.valid_fraction, *_FRACTIONS, 0.0}) if rule.valid_fraction else [0.0]
    folds = range(rule.folds, 1, -1) if rule.folds > 1 else [1]
    rules = [
        dataclasses.replace(rule, folds=each, test_fraction=test, valid_fraction=valid)
        for each, test, valid in itertools.product(folds, tests, valids)
    ]

    def distance(other: SplitRule) -> tuple[int, float]:
        apart = [
            abs(other.test_fraction - rule.test_fraction),
            abs(other.valid_fraction - rule.valid_fraction)
            + (1.0 if rule.valid_fraction and not other.valid_fraction else 0.0),
            (rule.folds - other.folds) / rule.folds,
        ]
        return sum(each > 0 for each in apart), sum(apart)

    return [each for each in sorted(rules, key=distance) if each != rule]


def small_classes(
    labels: pd.Series, rule: SplitRule, groups: pd.Series | None = None
) -> dict[str, int]:
    """Returns the classes that are too small to be learned and tested in each fold, with sizes.

    A class needs a member on each side, and as many as there are folds. With groups it needs as
    many of them; where groups hold several classes, one for each side.
    """
    minimum, sizes = rule.min_members, labels.value_counts()
    if groups is not None:
        pairs = pd.DataFrame({"class": labels, "group": groups}).drop_duplicates()
        sizes = pairs["class"].value_counts()
        if not _is_nested(labels, groups):
            minimum = min(minimum, 3 if rule.valid_fraction else 2)
    few = sizes[sizes < minimum].sort_values(kind="stable")
    return {str(name): int(count) for name, count in few.items()}


def describe_sizes(sizes: Mapping[str, int]) -> str:
    """Returns the first classes with their sizes, and how many more there are."""
    listed = [f'"{name}" {count}' for name, count in list(sizes.items())[:_NAMED]]
    more = len(sizes) - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more else "")


def _check_members(labels: pd.Series, rule: SplitRule, groups: pd.Series | None) -> None:
    classes = labels.unique()
    if len(classes) < 2:
        only = f' ("{classes[0]}")' if len(classes) else ""
        raise InputError(f"there is {len(classes)} class{only}; a classifier needs two or more")
    if groups is not None and rule.folds > groups.nunique():
        raise InputError(
            f'{rule.folds} folds need as many groups, but "{groups.name}" has '
            f"{groups.nunique()}; lower {rule.key('folds')}"
        )
    if few := small_classes(labels, rule, groups):
        remedies = [_possible(labels, rule, groups)]
        if len(classes) - len(few) >= 2:
            drops = f" with {rule.key('drop_small')}=True" if hasattr(rule, "drop_small") else ""
            remedies.append(f"leave them out{drops}")
        raise InputError(
            f"classes with too few {_what(rule, groups)} for {_plan(rule)}: {describe_sizes(few)} "
            f"(each needs {rule.min_members}); "
            f"{', or '.join(filter(None, remedies)) or 'give more of them, or other classes'}"
        )


def _plan(rule: SplitRule) -> str:
    if rule.folds > 1:
        return f"{rule.folds} folds"
    return "a train, a valid and a test side" if rule.valid_fraction else "a train and a test side"


def find_problem(split: Split, labels: pd.Series, groups: pd.Series | None) -> str:
    """Returns why a fold cannot be learned or tested, or which group leaks; "" if all is well.

    Each fold needs at least two classes on the train and on the test side, and on the train side
    every class of the other sides. No group may stand on two sides of a fold.
    """
    table = split.table.assign(label=labels.reindex(split.table["id"]).to_numpy())
    if groups is not None:
        table["group"] = groups.reindex(table["id"]).to_numpy()
    for fold, rows in table.groupby("fold"):
        if groups is not None and (leak := _leak(rows, fold, groups.name)):
            return leak
        classes = {side: set(rows.loc[rows["side"] == side, "label"]) for side in SIDES}
        for side in ("train", "test"):
            if len(classes[side]) < 2:
                have = ", ".join(f'"{name}"' for name in classes[side]) or "none"
                return f"fold {fold} has fewer than two classes on its {side} side ({have})"
        for side in ("test", "valid"):
            if unseen := sorted(map(str, classes[side] - classes["train"])):
                return (
                    f'class "{unseen[0]}" is on the {side} side of fold {fold}, but not on its '
                    "train side"
                )
    return ""


def check_ids(ids: pd.Index) -> None:
    """Raises InputError if an id occurs twice."""
    if not ids.is_unique:
        repeated = ids[ids.duplicated()][0]
        raise InputError(f'id "{repeated}" occurs twice; ids must be unique to be split')


def align_groups(labels: pd.Series, groups: pd.Series) -> pd.Series:
    """Returns the group of each id, as text; InputError if one has none."""
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
        yield _hold_out(labels, groups, rule, "test_fraction")
        return
    if groups is not None and not _is_nested(labels, groups):
        yield from _mixed_folds(labels, groups, rule.folds, rule.seed)
        return
    units = labels if groups is None else _group_labels(labels, groups)
    splitter = StratifiedKFold(rule.folds, shuffle=True, random_state=rule.seed)
    for _, test in splitter.split(units, units):
        yield _members(units.index[test], labels, groups)


def _hold_out(
    labels: pd.Series, groups: pd.Series | None, rule: SplitRule, name: str
) -> np.ndarray:
    """Returns bool [ids]: about a fraction (a field of the rule) of the ids, in whole groups."""
    fraction = getattr(rule, name)
    if groups is not None and not _is_nested(labels, groups):
        if groups.nunique() < 2:
            raise _CannotSplitError(
                f'{rule.key(name)} is {fraction:g}, but only one group of "{groups.name}" is left'
            )
        folds = min(max(round(1 / fraction), 2), groups.nunique())
        sides = list(_mixed_folds(labels, groups, folds, rule.seed))
        return next((each for each in sides if _can_be_learned(labels, each)), sides[0])
    units = labels if groups is None else _group_labels(labels, groups)
    try:
        _, held = train_test_split(
            np.arange(len(units)), test_size=fraction, stratify=units, random_state=rule.seed
        )
    except ValueError:
        why = _why_not(units, fraction, _what(rule, groups))
        raise _CannotSplitError(f"{rule.key(name)} is {fraction:g}: {why}") from None
    return _members(units.index[held], labels, groups)


def _why_not(units: pd.Series, fraction: float, what: str) -> str:
    """Returns why a fraction of units, which have a class each, cannot hold every class."""
    sizes, held = units.value_counts(), int(np.ceil(fraction * len(units)))
    if sizes.min() < 2:
        return f'class "{sizes.idxmin()}" has {sizes.min()} of the {len(units)} {what}'
    if held < len(sizes):
        return f"of {len(units)} {what} that is {held}, fewer than the {len(sizes)} classes"
    return (
        f"of {len(units)} {what} that leaves {len(units) - held} to learn from, fewer than the "
        f"{len(sizes)} classes"
    )


def _can_be_learned(labels: pd.Series, held: np.ndarray) -> bool:
    classes = set(labels[held])
    return len(classes) > 1 and classes <= set(labels[~held])


def _mixed_folds(
    labels: pd.Series, groups: pd.Series, folds: int, seed: int
) -> Iterator[np.ndarray]:
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    if labels.value_counts().max() < folds:
        raise _CannotSplitError(f"no class has the {folds} members that {folds} folds need")
    with warnings.catch_warnings():
        # Of classes with fewer members than folds; whether each side can be learned is checked.
        warnings.simplefilter("ignore", UserWarning)
        tested = [test for _, test in splitter.split(labels, labels, groups)]
    for test in tested:
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


def fold_rows(ids: pd.Index, fold: int, side: np.ndarray) -> pd.DataFrame:
    """Returns rows of a split's table."""
    return pd.DataFrame({"id": ids.astype(str), "fold": fold, "side": side})


def _leak(rows: pd.DataFrame, fold: int, name: object) -> str:
    sides = rows.groupby("group")["side"].nunique()
    leaking = sides.index[sides > 1]
    if not len(leaking):
        return ""
    listed = ", ".join(f'"{each}"' for each in leaking[:5])
    return (
        f'{len(leaking)} groups of "{name}" stand on several sides of fold {fold}, first {listed}'
    )
