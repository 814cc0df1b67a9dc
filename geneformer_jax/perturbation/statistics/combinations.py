"""Combination effects: a set of genes edited together, beside each of its genes edited alone."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata, wilcoxon

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.layout import JOINT
from geneformer_jax.perturbation.statistics.moments import GeneIndex
from geneformer_jax.perturbation.statistics.rank_sums import false_discovery_rates
from geneformer_jax.perturbation.statistics.shifts import SIGNIFICANT, Pieces, require_cells

_ROWS_AT_ONCE = 5_000_000


def combinations(
    pieces: Pieces, no_change: float = 1.0, *, rows_at_once: int = _ROWS_AT_ONCE
) -> tuple[pd.DataFrame, int]:
    """Whether genes edited together do more, or less, than each alone.

    Cells are paired with themselves: only cells in which the set and each of its genes alone were
    edited count. What is expected is the sum of the single effects, 1 - sum(1 - cosine) as in the
    original, and the strongest single effect (the gene whose mean is farthest from no change).
    Observed minus expected is tested by Wilcoxon's signed-rank test, two-sided
    (`scipy.stats.wilcoxon`: exact below 50 cells without ties, else the normal approximation; equal
    pairs are left out, and where all are equal p is 1). With fewer than six cells no p-value can
    fall below 0.05. p-values are adjusted by Benjamini and Hochberg over the sets.

    Args:
      pieces: rows of one measure and state, with the edits of single genes and of sets "A+B".
      no_change: value of an edit that moves nothing: 1 for cosines, 0 for shifts towards a state.
      rows_at_once: rows held in memory; more are processed in several passes over the pieces.

    Returns:
      (One row for each set, the significant first, then by the size of Combo_minus_sum_shift:
      Gene_name, Ensembl_ID, [Anchor_shift, Test_token_shift: the first and second gene alone, if
      all are pairs], Sum_of_indiv_shifts, Combo_shift, Combo_minus_sum_shift, Combo_vs_sum_pval,
      Combo_vs_sum_FDR, Combo_vs_sum_effect_size, Strongest_single (symbol), Strongest_single_shift,
      Combo_minus_strongest_shift, Combo_vs_strongest_pval, _FDR and _effect_size, N_Detections,
      Sig (Combo_vs_sum_FDR < 0.05); the number of sets left out, because one of their genes was not
      edited alone in any of the set's cells). Effect sizes are matched-pairs rank-biserial
      correlations, negative where the set's values lie below the expected ones.

    Raises:
      InputError: no sets, none whose genes were edited alone, or each in a single cell only.
    """
    edits, rows = GeneIndex(), np.zeros(0, np.int64)
    for piece in pieces:
        counts = np.bincount(edits.add(piece["perturbed"], piece["perturbed_symbol"]))
        counts = np.pad(counts, (0, len(edits) - len(counts)))
        counts[: len(rows)] += rows
        rows = counts
    sets, wanted = _sets_of(edits)
    results = []
    for block in _blocks(sets, rows, rows_at_once):
        values = _values_of(pieces, edits, np.unique(np.concatenate(block)))
        results += [_effect(each, values, edits, no_change) for each in block]
    found = [result for result in results if result]
    if not found:
        raise InputError(
            "no set of genes was edited in a cell in which each of its genes was edited alone; "
            "perturb the single genes in the same run"
        )
    require_cells(np.array([result["N_Detections"] for result in found]))
    return _combination_table(found), wanted - len(found)


def _sets_of(edits: GeneIndex) -> tuple[list[np.ndarray], int]:
    """Returns (for each set its own number and those of its genes, sets there are)."""
    names = edits.names
    numbers = {name: i for i, name in enumerate(names)}
    joint = [name for name in names if JOINT in name]
    if not joint:
        raise InputError(
            "the tables hold no sets of genes edited together; perturb pairs, an anchor with each "
            "gene, or combinations"
        )
    members = {name: [numbers.get(gene) for gene in name.split(JOINT)] for name in sorted(joint)}
    whole = {name: genes for name, genes in members.items() if None not in genes}
    return [np.array([numbers[name], *genes]) for name, genes in whole.items()], len(joint)


def _blocks(
    sets: Sequence[np.ndarray], rows: np.ndarray, max_rows: int
) -> Iterator[list[np.ndarray]]:
    """Puts sets together as long as the rows of their different edits are at most `max_rows`."""
    block: list[np.ndarray] = []
    held: set[int] = set()
    for each in sets:
        together = held | set(each.tolist())
        if block and rows[list(together)].sum() > max_rows:
            yield block
            block, together = [], set(each.tolist())
        block, held = [*block, each], together
    if block:
        yield block


def _values_of(pieces: Pieces, edits: GeneIndex, wanted: np.ndarray) -> dict[int, pd.Series]:
    """The values of each wanted edit, by cell id."""
    kept = []
    for piece in pieces:
        numbers = edits.find(piece["perturbed"])
        chosen = np.isin(numbers, wanted)
        kept.append(
            pd.DataFrame(
                {
                    "edit": numbers[chosen],
                    "cell": piece["cell"].to_numpy(object)[chosen],
                    "value": piece["value"].to_numpy(np.float64)[chosen],
                }
            )
        )
    rows = pd.concat(kept)
    twice = rows[rows.duplicated(["edit", "cell"])]
    if len(twice):
        raise InputError(
            f"the tables hold {edits.names[twice['edit'].iloc[0]]} more than once in the cell "
            f"{twice['cell'].iloc[0]}; run the perturbation again, of cells with different ids"
        )
    return {edit: each.set_index("cell")["value"] for edit, each in rows.groupby("edit")}


def _effect(
    numbers: np.ndarray, values: dict[int, pd.Series], edits: GeneIndex, no_change: float
) -> dict[str, object] | None:
    """One row of the table, or None if no cell has all the edits."""
    cells = pd.concat([values[number] for number in numbers], axis=1, join="inner").to_numpy()
    if not len(cells):
        return None
    combo, singles = cells[:, 0], cells[:, 1:]
    means = singles.mean(0)
    strongest = int(np.argmax(np.abs(means - no_change)))
    expected = no_change + (singles - no_change).sum(1)
    alone = {}
    if singles.shape[1] == 2:
        alone = {"Anchor_shift": means[0], "Test_token_shift": means[1]}
    sum_p, sum_effect = _signed_rank_test(combo - expected)
    single_p, single_effect = _signed_rank_test(combo - singles[:, strongest])
    return {
        "Gene_name": edits.symbols[numbers[0]],
        "Ensembl_ID": edits.names[numbers[0]],
        **alone,
        "Sum_of_indiv_shifts": expected.mean(),
        "Combo_shift": combo.mean(),
        "Combo_minus_sum_shift": (combo - expected).mean(),
        "Combo_vs_sum_pval": sum_p,
        "Combo_vs_sum_effect_size": sum_effect,
        "Strongest_single": edits.symbols[numbers[1 + strongest]],
        "Strongest_single_shift": means[strongest],
        "Combo_minus_strongest_shift": combo.mean() - means[strongest],
        "Combo_vs_strongest_pval": single_p,
        "Combo_vs_strongest_effect_size": single_effect,
        "N_Detections": len(cells),
    }


def _signed_rank_test(differences: np.ndarray) -> tuple[float, float]:
    """Returns (two-sided p-value, matched-pairs rank-biserial correlation)."""
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0, 0.0
    ranks = rankdata(np.abs(differences))
    effect = float((ranks * np.sign(differences)).sum() / ranks.sum())
    return float(wilcoxon(differences).pvalue), effect


def _combination_table(rows: list[dict[str, object]]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    if {2} != set(table["Ensembl_ID"].str.count(r"\+") + 1):
        table = table.drop(columns=["Anchor_shift", "Test_token_shift"], errors="ignore")
    for other in ("sum", "strongest"):
        rates = false_discovery_rates(table[f"Combo_vs_{other}_pval"].to_numpy())
        place = table.columns.get_loc(f"Combo_vs_{other}_pval") + 1
        table.insert(place, f"Combo_vs_{other}_FDR", rates)
    table["Sig"] = (table["Combo_vs_sum_FDR"] < SIGNIFICANT).astype(int)
    table["size"] = table["Combo_minus_sum_shift"].abs()
    order = ["Sig", "size", "Ensembl_ID"]
    ascending = [False, False, True]
    return table.sort_values(order, ascending=ascending, ignore_index=True).drop(columns="size")
