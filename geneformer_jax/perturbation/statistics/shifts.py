"""Statistics of perturbation shifts: which edits move cells, and where to.

Pure functions of tables that come a piece at a time. `Pieces` is anything that can be iterated
again and again over DataFrames: a list with one DataFrame (as `perturb_cells` returns), or a reader
of files (`tables.ShiftRows`). Each piece has one row for each cell and edit:

- `cell`: id of the cell.
- `perturbed`, `perturbed_symbol`: gene id and symbol of the edit, those of a set joined by "+".
- `state`: the cell state that the shift is towards, "" where there is none.
- `value`: the shift: a cosine similarity (1 = nothing moved), or with states its change (0 =
  nothing moved).

Columns have the original's names where it has such a table. Its columns of token numbers (Gene,
Perturbed) are left out. Columns with `effect_size` are ours: rank-biserial correlations, from -1
(every value below all it is compared with) to 1.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.stats import ranksums

from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.perturbation.statistics.moments import (
    GeneIndex,
    Moments,
    RunningMoments,
    blocks_of,
)
from geneformer_jax.perturbation.statistics.rank_sums import (
    Background,
    RunningSample,
    false_discovery_rates,
    rank_sum_test,
)

Pieces = Iterable[pd.DataFrame]

SIGNIFICANT = 0.05
BACKGROUND = 100_000
SEED = 42
CELL = "cell_emb"
# Some 200 MB.
_ROWS_AT_ONCE = 5_000_000
PAIRS_AT_ONCE = 4_000_000


def goal_state_shift(
    pieces: Pieces,
    goal: str,
    alternatives: Sequence[str] = (),
    *,
    without_own: bool = False,
    background: int = BACKGROUND,
    seed: int = SEED,
) -> pd.DataFrame:
    """Which edits move cells towards the goal state more, or less, than edits do by and large.

    As in the original, the shifts of each edit are compared with those of all edits by a two-sided
    rank-sum test (see `rank_sum_test` for ties and few cells), and p-values are
    adjusted by Benjamini and Hochberg over the edits, for each state by itself.

    Args:
      pieces: rows of one measure, with one row for each state.
      goal: the state that Shift_to_goal_end is towards.
      alternatives: further states, each with columns of its own.
      without_own: leave an edit's own rows out of the background it is compared with. The original
        keeps them in, which pulls p-values towards 1 where there are few edits.
      background: rows of the background; more are sampled, as the original does above 100,000.
      seed: of that sample (see `RunningSample`).

    Returns:
      One row for each edit, the significant first, then by Shift_to_goal_end: Gene_name,
      Ensembl_ID, Shift_to_goal_end, Shift_to_alt_end_S, Goal_end_vs_random_pval,
      Alt_end_vs_random_pval_S, Goal_end_FDR, Alt_end_FDR_S, Goal_end_effect_size,
      Alt_end_effect_size_S, N_Detections (cells), Sig (1 where Goal_end_FDR < 0.05). A single edit
      has nothing to be compared with: its table has the shifts and N_Detections only.

    Raises:
      InputError: a state has no rows, or every edit was made in a single cell.
    """
    states = (goal, *alternatives)
    edits, moments, samples = _survey_states(pieces, states, background, seed)
    shifts = [moments[state].dense(len(edits)) for state in states]
    require_cells(shifts[0].counts)
    table = pd.DataFrame({"Gene_name": edits.symbols, "Ensembl_ID": edits.names})
    suffixes = ["", *(f"_{state}" for state in alternatives)]
    for end, suffix, shift in zip(_ends(states), suffixes, shifts, strict=True):
        table[f"Shift_to_{end.lower()}_end{suffix}"] = shift.means
    if len(edits) > 1:
        backgrounds = {state: samples[state].background() for state in states}
        tested = _test_states(pieces, edits, backgrounds, shifts, without_own)
        for column, values in zip(("vs_random_pval", "FDR", "effect_size"), tested, strict=True):
            for end, suffix, numbers in zip(_ends(states), suffixes, values, strict=True):
                table[f"{end}_end_{column}{suffix}"] = numbers
    table["N_Detections"] = shifts[0].counts
    if len(edits) == 1:
        return table
    table["Sig"] = (table["Goal_end_FDR"] < SIGNIFICANT).astype(int)
    return sorted_by(table, {"Sig": False, "Shift_to_goal_end": False, "Goal_end_FDR": True})


def require_cells(counts: np.ndarray) -> None:
    """Raises InputError if no edit was made in the two cells that a test needs."""
    if counts.max() < 2:
        raise InputError(
            "too few cells: no edit was made in more than one cell, and a test needs at least 2; "
            "perturb more cells, or ask for aggregate"
        )


def _ends(states: Sequence[str]) -> list[str]:
    return ["Goal", *["Alt"] * (len(states) - 1)]


def _survey_states(
    pieces: Pieces, states: Sequence[str], background: int, seed: int
) -> tuple[GeneIndex, dict[str, Moments], dict[str, RunningSample]]:
    edits, seen = GeneIndex(), set()
    moments = {state: RunningMoments() for state in states}
    samples = {state: RunningSample(background, seed) for state in states}
    for piece in pieces:
        seen.update(piece["state"].unique())
        for state, rows in _rows_of_states(piece, states):
            values = rows["value"].to_numpy(np.float64)
            numbers = edits.add(rows["perturbed"], rows["perturbed_symbol"])
            moments[state].add(numbers, values)
            samples[state].add(rows["cell"], rows["perturbed"], numbers, values)
    for state in states:
        if state not in seen:
            known = ", ".join(sorted(seen - {""})) or "none"
            raise InputError(
                f'no shifts towards a state "{state}"{did_you_mean(state, seen)}; the tables have '
                f"these states: {known}"
            )
    return edits, {state: each.result() for state, each in moments.items()}, samples


def _rows_of_states(
    piece: pd.DataFrame, states: Iterable[str]
) -> Iterator[tuple[str, pd.DataFrame]]:
    for state in states:
        rows = piece[(piece["state"] == state).to_numpy()]
        if len(rows):
            yield state, rows


def _test_states(
    pieces: Pieces,
    edits: GeneIndex,
    backgrounds: dict[str, Background],
    shifts: Sequence[Moments],
    without_own: bool,
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Returns p-values, their FDR and effect sizes, each a list of [edits], one per state."""
    below = {state: np.zeros(len(edits)) for state in backgrounds}
    for piece in pieces:
        for state, rows in _rows_of_states(piece, backgrounds):
            numbers = edits.find(rows["perturbed"])
            values = rows["value"].to_numpy(np.float64)
            ranks = backgrounds[state].below(values)
            if without_own:
                ranks -= backgrounds[state].own_below(values, numbers)
            below[state] += np.bincount(numbers, ranks, len(edits))
    p_values, effects = [], []
    for (state, background), shift in zip(backgrounds.items(), shifts, strict=True):
        own = background.owned(len(edits)) if without_own else 0
        tested = rank_sum_test(below[state], shift.counts, len(background.values) - own)
        p_values.append(tested[0])
        effects.append(tested[1])
    return p_values, [false_discovery_rates(each) for each in p_values], effects


def versus_null(test: Pieces, null: Pieces, *, rows_at_once: int = _ROWS_AT_ONCE) -> pd.DataFrame:
    """Which edits move the test cells otherwise than the same edits move cells of a null set.

    Rank-sum tests by `scipy.stats.ranksums` as in the original: two-sided, normal approximation,
    middle ranks for ties without correction of the variance, so rough below about ten cells. An
    edit without null cells has p = 1 and counts as a test in the adjustment, as in the original.

    Args:
      test: rows of one measure and state.
      null: the same for other cells.
      rows_at_once: rows held in memory; more are processed in several passes over the pieces.

    Returns:
      One row for each edit of `test`, the significant first, then by difference: Gene_name,
      Ensembl_ID, Test_avg_shift, Null_avg_shift, Test_vs_null_avg_shift (their difference),
      Test_vs_null_pval, Test_vs_null_FDR, Test_vs_null_effect_size, N_Detections_test,
      N_Detections_null, Sig.

    Raises:
      InputError: no edit of `test` was made in `null` cells too, or each in a single cell only.
    """
    edits = GeneIndex()
    ours, theirs = _moments(test, edits), _moments(null, edits, grow=False)
    if not theirs.counts.any():
        raise InputError(
            "no edit was made in both the test and the null cells; perturb the same genes in both"
        )
    require_cells(np.minimum(ours.counts, theirs.counts))
    p_values, effects = np.ones(len(edits)), np.full(len(edits), np.nan)
    for block in blocks_of(ours.counts + theirs.counts, rows_at_once):
        test_values, null_values = (_values_of(pieces, edits, block) for pieces in (test, null))
        for edit in block:
            x, y = test_values[edit - block.start], null_values[edit - block.start]
            if len(y):
                z, p_values[edit] = ranksums(x, y)
                effects[edit] = z * np.sqrt((len(x) + len(y) + 1) / (3 * len(x) * len(y)))
    table = pd.DataFrame(
        {
            "Gene_name": edits.symbols,
            "Ensembl_ID": edits.names,
            "Test_avg_shift": ours.means,
            "Null_avg_shift": theirs.means,
            "Test_vs_null_avg_shift": ours.means - theirs.means,
            "Test_vs_null_pval": p_values,
            "Test_vs_null_FDR": false_discovery_rates(p_values),
            "Test_vs_null_effect_size": effects,
            "N_Detections_test": ours.counts,
            "N_Detections_null": theirs.counts,
        }
    )
    table["Sig"] = (table["Test_vs_null_FDR"] < SIGNIFICANT).astype(int)
    order = {"Sig": False, "Test_vs_null_avg_shift": False, "Test_vs_null_FDR": True}
    return sorted_by(table, order)


def sample_shifts(pieces: Pieces, max_rows: int = 20_000, seed: int = SEED) -> np.ndarray:
    """Samples shifts of any edits in any cells; float64 [max_rows, or all if fewer]."""
    sample, edits = RunningSample(max_rows, seed), GeneIndex()
    for piece in pieces:
        numbers = edits.add(piece["perturbed"], piece["perturbed_symbol"])
        values = piece["value"].to_numpy(np.float64)
        sample.add(piece["cell"], piece["perturbed"], numbers, values)
    return sample.background().values


def values_of_edits(pieces: Pieces, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the shifts of these edits (ids), one float64 for each of their cells."""
    found: dict[str, list[np.ndarray]] = {edit: [] for edit in wanted}
    for piece in pieces:
        rows = piece[piece["perturbed"].isin(wanted)]
        for edit, values in rows.groupby("perturbed", observed=True)["value"]:
            found[edit].append(values.to_numpy(np.float64))
    return {edit: np.concatenate(values) for edit, values in found.items() if values}


def _moments(pieces: Pieces, edits: GeneIndex, grow: bool = True) -> Moments:
    """Moments [edits] by edit; with `grow` new edits get numbers, else their rows are left out."""
    running = RunningMoments()
    for piece in pieces:
        if grow:
            edits.add(piece["perturbed"], piece["perturbed_symbol"])
        numbers = edits.find(piece["perturbed"])
        known = numbers >= 0
        running.add(numbers[known], piece["value"].to_numpy(np.float64)[known])
    return running.result().dense(len(edits))


def _values_of(pieces: Pieces, edits: GeneIndex, block: range) -> list[np.ndarray]:
    """The values of each edit of `block`."""
    numbers, values = [np.zeros(0, np.int64)], [np.zeros(0)]
    for piece in pieces:
        found = edits.find(piece["perturbed"])
        rows = is_within(found, block)
        numbers.append(found[rows])
        values.append(piece["value"].to_numpy(np.float64)[rows])
    number = np.concatenate(numbers)
    order = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[order], np.arange(block.start + 1, block.stop))
    return np.split(np.concatenate(values)[order], ends)


def is_within(numbers: np.ndarray, block: range) -> np.ndarray:
    """Returns which numbers lie in a block."""
    return (numbers >= block.start) & (numbers < block.stop)


def sorted_by(table: pd.DataFrame, order: dict[str, bool]) -> pd.DataFrame:
    """Sorts by these columns (True = ascending), and by ids where they are equal."""
    ids = [name for name in ("Ensembl_ID", "Affected_Ensembl_ID") if name in table]
    return table.sort_values(
        [*order, *ids], ascending=[*order.values(), *[True] * len(ids)], ignore_index=True
    )
