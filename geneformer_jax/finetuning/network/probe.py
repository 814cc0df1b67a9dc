"""A head of cells that begins as logistic regression on what it pools of them.

A head of random weights sends gradients into the network that mean nothing yet, and bends what was
learned there before it has found what the embeddings tell as they are. A head that is fitted first
does not (Kumar et al., Fine-tuning can distort pretrained features and underperform
out-of-distribution, ICLR 2022).
"""

from typing import Any

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression

from geneformer_jax.common.errors import InputError

# Standard deviations of the pooled components as the tanh layer has them: it is all but linear.
_SPREAD = 0.3
# Weight of the fit against the penalty on coefficients of components of variance 1.
_C = 0.01
# Components of less than this part of the largest deviation are rounding.
_LEAST = 1e-4
_ITERATIONS = 1_000
# Logit of a class that no training cell has.
_UNSEEN = -10.0


def probe_head(
    drawn: dict[str, Any], pooled_ND: np.ndarray, labels_N: np.ndarray, *, balanced: bool = False
) -> dict[str, Any]:
    """Returns the weights of a cell classifier that says what logistic regression does.

    The tanh layer takes the principal components of what is pooled, each scaled to the same small
    deviation, and the last layer the regression's coefficients. With fewer cells than components,
    the rest of the tanh layer stays as it was drawn, and the last layer does not look at it.

    Args:
      drawn: weights of the head as they are drawn, {"pooler", "classifier"} of kernels and biases.
      pooled_ND: float32, what it pools of N training cells.
      labels_N: their classes, int, of 0 to C - 1.
      balanced: whether each class weighs the same.

    Raises:
      InputError: all cells are of one class, or all are alike.
    """
    classes, counts = np.unique(labels_N, return_counts=True)
    if len(classes) < 2:
        raise InputError(
            f"all {counts.sum():,} training cells are of one class, and a head that begins as a "
            "probe needs two; set `config.head.initial`=random"
        )
    kernel_DK, bias_K = _scaled_components(pooled_ND)
    if not len(bias_K):
        raise InputError(
            f"what is pooled of all {len(pooled_ND):,} training cells is the same, so that a probe "
            "has nothing to tell them by; set `config.head.initial`=random"
        )
    features_NK = np.tanh(pooled_ND @ kernel_DK + bias_K)
    regression = LogisticRegression(
        C=_C / _SPREAD**2, max_iter=_ITERATIONS, class_weight="balanced" if balanced else None
    )
    coefficients_CK, intercepts_C = _by_class(regression.fit(features_NK, labels_N))
    head = jax.tree.map(lambda leaf: np.array(leaf, np.float32), drawn)
    K = len(bias_K)
    head["pooler"]["kernel"][:, :K], head["pooler"]["bias"][:K] = kernel_DK, bias_K
    classifier = head["classifier"]
    classifier["kernel"][:], classifier["bias"][:] = 0, _UNSEEN
    classifier["kernel"][:K, classes] = coefficients_CK.T
    classifier["bias"][classes] = intercepts_C
    return head


def _scaled_components(pooled_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel [D, K] and bias [K] that give principal components of one deviation."""
    center_D = pooled_ND.mean(axis=0)
    _, singular_K, directions_KD = np.linalg.svd(pooled_ND - center_D, full_matrices=False)
    kept = singular_K > _LEAST * singular_K.max()
    kernel_DK = directions_KD[kept].T * (_SPREAD * np.sqrt(len(pooled_ND)) / singular_K[kept])
    return kernel_DK, -center_D @ kernel_DK


def _by_class(regression: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Returns coefficients [C, K] and intercepts [C] of the softmax."""
    coefficients_CK, intercepts_C = regression.coef_, regression.intercept_
    # Of two classes there is one row.
    if len(coefficients_CK) > 1:
        return coefficients_CK, intercepts_C
    halves = np.array([[-0.5], [0.5]])
    return halves * coefficients_CK, halves[:, 0] * intercepts_C
