"""Intervals of mean shifts by drawing whole donors, whose cells are no independent samples."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from geneformer_jax.inference.columns import check_columns
from geneformer_jax.perturbation.controls.choice import DONORS, read_controls, refuse
from geneformer_jax.perturbation.statistics.moments import GeneIndex, RunningMoments
from geneformer_jax.perturbation.statistics.shifts import SEED, Pieces

MIN_DONORS = 3
_DRAWS, _INTERVAL = 1_000, (2.5, 97.5)
_DRAWN_AT_ONCE = 512


def donor_intervals(pieces: Pieces, donors: pd.Series, edits: GeneIndex) -> pd.DataFrame:
    """Returns the 95 % interval of each edit's mean shift over cells, by bootstrap over donors.

    Args:
      pieces: rows of one measure and state.
      donors: donor by id of the cell; rows of cells without one are left out.
      edits: those to give intervals of.

    Returns:
      One row for each edit: Donors (that have the edit), Shift_low, Shift_high; NaN with fewer than
      MIN_DONORS of them.
    """
    codes, names = pd.factorize(donors)
    donor_of = pd.Series(codes, donors.index)
    running = RunningMoments()
    for piece in pieces:
        donor = piece["cell"].astype(str).map(donor_of).fillna(-1).to_numpy(np.int64)
        keys = edits.find(piece["perturbed"]) * len(names) + donor
        running.add(keys[donor >= 0], piece["value"].to_numpy(np.float64)[donor >= 0])
    moments = running.result().dense(len(edits) * len(names))
    counts_ED = moments.counts.reshape(len(edits), len(names))
    sums_ED = np.nan_to_num(moments.means).reshape(counts_ED.shape) * counts_ED
    low, high = _intervals(sums_ED, counts_ED)
    table = pd.DataFrame({"Donors": (counts_ED > 0).sum(axis=1), "Shift_low": low})
    table["Shift_high"] = high
    few = table["Donors"] < MIN_DONORS
    table.loc[few, ["Shift_low", "Shift_high"]] = np.nan
    return table.set_axis(edits.names)


def describe_few(column: str, donors: pd.Series) -> str:
    """Says what is lacking if cells are of too few donors; "" where they are enough.

    Args:
      column: obs column that names donors.
      donors: its values in the perturbed cells; missing ones do not count.
    """
    if (number := donors.nunique()) >= MIN_DONORS:
        return ""
    return (
        f'at least {MIN_DONORS} donors, but column "{column}" has {number} among the chosen cells: '
        "name another by `group`"
    )


def require_donors(controls: str | Sequence[str], group: str, obs: pd.DataFrame) -> None:
    """Raises InputError if the control `donors` was named, but cells are of too few, or of none.

    Args:
      controls: see `read_controls`.
      group: obs column of donors.
      obs: of the cells to perturb.
    """
    if DONORS in (read_controls(controls) or ()):
        check_columns(obs.columns, [group])
        if why := describe_few(group, obs[group]):
            raise refuse(DONORS, why)


def _intervals(sums_ED: np.ndarray, counts_ED: np.ndarray) -> np.ndarray:
    """float64 [2, edits], the ends; draws without a cell of an edit are left out for it."""
    donors = counts_ED.shape[1]
    times_BD = np.random.default_rng(SEED).multinomial(donors, np.full(donors, 1 / donors), _DRAWS)
    ends = []
    for first in range(0, len(sums_ED), _DRAWN_AT_ONCE):
        own = slice(first, first + _DRAWN_AT_ONCE)
        with np.errstate(divide="ignore", invalid="ignore"):
            means_BE = (times_BD @ sums_ED[own].T) / (times_BD @ counts_ED[own].T)
        known = np.isfinite(means_BE).any(axis=0)
        means_BE[:, ~known] = 0
        ends.append(np.where(known, np.nanpercentile(means_BE, _INTERVAL, axis=0), np.nan))
    return np.concatenate(ends, axis=1)
