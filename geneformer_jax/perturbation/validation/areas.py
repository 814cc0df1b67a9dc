"""Areas under the ROC and precision-recall curves of many labellings of the same scores."""

import numpy as np
from scipy.stats import rankdata


def areas(is_positive_SN: np.ndarray, scores_N: np.ndarray) -> dict[str, np.ndarray]:
    """Returns areas as scikit-learn defines them, for all labellings at one go.

    Args:
      is_positive_SN: bool, S labellings; each has positive and negative ones.
      scores_N: the higher, the likelier positive.

    Returns:
      `roc_auc` and `pr_auc` (average precision), float64 [S].
    """
    positives, total = is_positive_SN.sum(axis=1), len(scores_N)
    below = is_positive_SN @ rankdata(scores_N) - positives * (positives + 1) / 2
    order = np.argsort(-scores_N, kind="stable")
    # Equal scores pass a threshold together.
    last = np.flatnonzero(np.append(np.diff(scores_N[order]) != 0, True))
    found = np.cumsum(is_positive_SN[:, order], axis=1)[:, last]
    gains = np.diff(found, axis=1, prepend=0) / positives[:, None]
    return {
        "roc_auc": below / (positives * (total - positives)),
        "pr_auc": (gains * found / (last + 1)).sum(axis=1),
    }
