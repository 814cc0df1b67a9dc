"""How well predicted effects of perturbations fit measured ones: pure functions of arrays.

Named as cell-eval 0.8.2 (`discrimination_score_cosine`, `roc_auc`, `pr_auc`) and scPertEval 0.2.0
(the ending `_pert`: less the mean over perturbations) name theirs, where they have them.
"""

import numpy as np
from sklearn.metrics.pairwise import cosine_similarity

from geneformer_jax.perturbation.validation.areas import areas

RECALLS = (1, 5)
FOLDS = 5


def mean_of_others(values_PX: np.ndarray) -> np.ndarray:
    """Returns for each row the mean of the other rows, NaN left out; [P, X]."""
    known = np.isfinite(values_PX)
    filled = np.where(known, values_PX, 0.0)
    numbers = known.sum(axis=0) - known
    with np.errstate(divide="ignore", invalid="ignore"):
        means = (filled.sum(axis=0) - filled) / numbers
    return np.where(numbers > 0, means, np.nan)


def retrieval(predicted_PD: np.ndarray, measured_PD: np.ndarray) -> dict[str, np.ndarray]:
    """Ranks all measured shifts by their cosine with each predicted one.

    Returns:
      Name -> float64 [P]: `discrimination_score_cosine`, 1 - (rank of the right one, from 0) / P;
      `reciprocal_rank`, 1 / (rank from 1), whose mean is the mean reciprocal rank; `recall_at_K`,
      whether it is among the first K, for K below P. Equal cosines share their middle rank. NaN
      where a shift has no direction.
    """
    cosines_PP = cosine_similarity(predicted_PD, measured_PD)
    own_P1 = np.diag(cosines_PP)[:, None]
    before_P = (cosines_PP > own_P1).sum(axis=1)
    equal_P = (cosines_PP == own_P1).sum(axis=1) - 1
    ranks_P = before_P + equal_P / 2
    has_direction = predicted_PD.any(axis=1) & measured_PD.any(axis=1)
    ranks_P = np.where(has_direction, ranks_P, np.nan)
    number = len(ranks_P)
    scores = {
        "discrimination_score_cosine": 1 - ranks_P / number,
        "reciprocal_rank": 1 / (1 + ranks_P),
    }
    for k in RECALLS:
        if k < number:
            is_found = np.where(np.isnan(ranks_P), np.nan, ranks_P < k)
            scores[f"recall_at_{k}"] = is_found
    return scores


def gene_areas(scores_V: np.ndarray, is_changed_V: np.ndarray) -> dict[str, float]:
    """Tells changed genes from others by a score: areas under the two curves.

    Args:
      scores_V: the higher, the more changed; NaN takes no part.
      is_changed_V: bool, measured.

    Returns:
      `roc_auc` and `pr_auc` (average precision); NaN unless both kinds of genes are there.
    """
    known = np.isfinite(scores_V)
    scores_V, is_changed_V = scores_V[known], is_changed_V[known]
    if is_changed_V.all() or not is_changed_V.any():
        return {"roc_auc": np.nan, "pr_auc": np.nan}
    return {name: float(each[0]) for name, each in areas(is_changed_V[None], scores_V).items()}


def held_out_correlations(
    changes_PV: np.ndarray, identities_PV: np.ndarray, shifts_PV: np.ndarray | None, seed: int
) -> np.ndarray:
    """Predicts how far genes change, in perturbations that are held out.

    A linear model of the changes is fitted to all genes of all other perturbations than those of a
    fold, and correlated with the changes in these.

    Args:
      changes_PV: measured; NaN takes no part.
      identities_PV: what the gene alone says: its change in other perturbations. Of a held-out
        perturbation, and of each that is fitted, the mean over the others that are fitted.
      shifts_PV: a further predictor, standardised within each perturbation; None for none.
      seed: of the folds.

    Returns:
      float64 [P], Pearson's r over genes; NaN for fewer than three perturbations.
    """
    number = len(changes_PV)
    correlations_P = np.full(number, np.nan)
    if number < 3:
        return correlations_P
    order = np.random.default_rng(seed).permutation(number)
    shifts = [] if shifts_PV is None else [_standardised(shifts_PV)]
    for tested in np.array_split(order, min(FOLDS, number)):
        fitted = np.setdiff1d(order, tested)
        of_fitted = mean_of_others(identities_PV[fitted])
        mean_V = _mean(identities_PV[fitted])
        parts = [of_fitted, *(each[fitted] for each in shifts)]
        weights = _fit(parts, changes_PV[fitted])
        for perturbation in tested:
            parts = [mean_V, *(each[perturbation] for each in shifts)]
            guess_V = weights[0] + sum(w * x for w, x in zip(weights[1:], parts, strict=True))
            correlations_P[perturbation] = correlation(guess_V, changes_PV[perturbation])
    return correlations_P


def correlation(x_V: np.ndarray, y_V: np.ndarray) -> float:
    """Returns Pearson's r of the pairs that are known; NaN where one side does not vary."""
    known = np.isfinite(x_V) & np.isfinite(y_V)
    if known.sum() < 3 or not np.ptp(x_V[known]) or not np.ptp(y_V[known]):
        return float("nan")
    return float(np.corrcoef(x_V[known], y_V[known])[0, 1])


def _standardised(values_PV: np.ndarray) -> np.ndarray:
    known = np.ma.masked_invalid(values_PV)
    spread = known.std(axis=1, keepdims=True)
    scaled = (known - known.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    return scaled.filled(np.nan)


def _mean(values_PV: np.ndarray) -> np.ndarray:
    return np.ma.masked_invalid(values_PV).mean(axis=0).filled(np.nan)


def _fit(parts: list[np.ndarray], changes: np.ndarray) -> np.ndarray:
    """Returns intercept and weights of a least squares fit."""
    known = np.isfinite(changes) & np.all([np.isfinite(part) for part in parts], axis=0)
    columns = [np.ones(known.sum()), *(part[known] for part in parts)]
    return np.linalg.lstsq(np.stack(columns, axis=1), changes[known], rcond=None)[0]
