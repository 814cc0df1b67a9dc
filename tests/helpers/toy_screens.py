"""Made-up screens of the toy genes: with what the model predicts planted in them, or nothing."""

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from tests.helpers.toy import GENES

TARGETS = tuple(range(2, 26, 3))
CONTROL = "non-targeting"
_CONTROLS, _CELLS = 120, 40


def gene_id(number: int) -> str:
    return f"ENSG{number:011d}"


def toy_screen(changed: dict[int, np.ndarray] | None = None, seed: int = 0) -> ad.AnnData:
    """Raw counts of control cells and of cells with one gene perturbed each.

    Args:
      changed: perturbed gene -> genes that are expressed four times as strongly there, while the
        perturbed one is gone; None plants nothing: labels are drawn at random.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    labels = [CONTROL] * _CONTROLS + [gene for gene in TARGETS for _ in range(_CELLS)]
    rates = np.tile(np.exp(np.linspace(1.5, 0.5, GENES)), (len(labels), 1))
    if changed is not None:
        for cell, label in enumerate(labels):
            if label != CONTROL:
                rates[cell, changed[label]] *= 4
                rates[cell, label] = 0
    names = [label if label == CONTROL else gene_id(label) for label in labels]
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(rates).astype(np.int32)),
        obs=pd.DataFrame({"target": names}, index=[f"c{i}" for i in range(len(labels))]),
        var=pd.DataFrame(index=[gene_id(number) for number in range(GENES)]),
    )
