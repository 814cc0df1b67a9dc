"""What a validation says, in sentences."""

import numpy as np
import pandas as pd

from geneformer_jax.perturbation.statistics.shifts import SIGNIFICANT
from geneformer_jax.perturbation.validation.scoring.calibration import NEGATIVES
from geneformer_jax.perturbation.validation.scoring.compare import (
    CORRELATION,
    LIKE_RANK,
    MEAN,
    PREDICTION,
    SPLIT_HALF,
)

NAMES = {
    PREDICTION: "the prediction",
    LIKE_RANK: "genes of like rank",
    MEAN: "the mean over perturbations",
    SPLIT_HALF: "a second half of the measured cells",
}
# What each of them asks, and how the answer reads.
ASKED = {
    "discrimination_score_cosine": "finding the right perturbation by its embedding shift",
    "discrimination_score_cosine_pert": "finding the right perturbation by what its shift has "
    "beyond the mean shift",
    "roc_auc": "telling changed genes by how far they shift",
    "roc_auc_pert": "telling changed genes by how much further they shift than in other edits",
    CORRELATION: "predicting how far genes change in held-out perturbations",
}

_LACKING = (
    "perturbations with changed and unchanged genes, or of three perturbations, among the genes "
    "that enough edited cells have in sight"
)


def describe(summary: pd.DataFrame) -> list[str]:
    """Returns the verdict in one sentence, and then a sentence for each question."""
    rows = summary.set_index("protocol")
    asked = rows.loc[[protocol for protocol in ASKED if protocol in rows.index]]
    lines = [_verdict(asked), *(_sentence(row) for _, row in asked.iterrows())]
    if missing := [protocol for protocol in ASKED if protocol not in rows.index]:
        lines.append(f"Not measured, for lack of {_LACKING}: {', '.join(missing)}")
    return lines


def _verdict(asked: pd.DataFrame) -> str:
    # Where the positive control is not above the negative one there is nothing to reach.
    can = asked[asked[f"drf_{LIKE_RANK}"].notna()]
    if can.empty:
        return (
            "Nothing can be told: not even a second half of the measured cells does better than "
            f"{NAMES[LIKE_RANK]}, so the screen does not tell its perturbations apart"
        )
    beats = {name: _beats(can, name, len(asked)) for name in NEGATIVES}
    both = can.index[np.all(list(beats.values()), axis=0)]
    if len(both):
        return (
            f"The predictions beat all their controls in {len(both)} of the {len(can)} questions "
            "that the measured cells can answer: " + "; ".join(ASKED[protocol] for protocol in both)
        )
    asked_of = {name: can[f"minus_{name}"].notna() for name in NEGATIVES}
    counts = {name: (beats[name] & asked_of[name]).sum() for name in NEGATIVES}
    times = ", ".join(f"{NAMES[name]} in {count}" for name, count in counts.items())
    return (
        "Nothing specific to the perturbed gene is shown: the measured cells can answer "
        f"{len(can)} of {len(ASKED)} questions, of which the predictions beat {times}, and in none "
        "both"
    )


def _beats(can: pd.DataFrame, negative: str, questions: int) -> np.ndarray:
    """Returns bool [rows], where the prediction is above a control, or is not asked to be.

    P-values are adjusted for the number of questions (Bonferroni).
    """
    gain, p_value = can[f"minus_{negative}"], can[f"minus_{negative}_pval"] * questions
    return ((gain > 0) & (p_value < SIGNIFICANT) | gain.isna()).to_numpy()


def _sentence(row: pd.Series) -> str:
    parts = [
        f"{NAMES[name]} {row[name]:.3f} (difference {_difference(row, name)})"
        for name in NEGATIVES
        if np.isfinite(row[f"minus_{name}"])
    ]
    parts.append(f"{NAMES[SPLIT_HALF]} {row[SPLIT_HALF]:.3f}")
    head = f"{ASKED[row.name]} ({row.name}): {NAMES[PREDICTION]} {row[PREDICTION]:.3f}"
    return f"{head[0].upper()}{head[1:]}, {', '.join(parts)}"


def _difference(row: pd.Series, negative: str) -> str:
    mean, low, high, p_value = (
        row[f"minus_{negative}{ending}"] for ending in ("", "_low", "_high", "_pval")
    )
    interval = "in each" if np.isnan(low) else f"{low:+.3f} to {high:+.3f}"
    return f"{mean:+.3f}, {interval}, p {p_value:.2g}"
