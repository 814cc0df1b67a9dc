"""What is known of each perturbation: its cells, where its gene stands, and how much it changes."""

import numpy as np
import pandas as pd

from geneformer_jax.perturbation.statistics.shifts import SIGNIFICANT
from geneformer_jax.perturbation.validation.prepare import Validator
from geneformer_jax.perturbation.validation.scoring.compare import Effects


def perturbation_table(validator: Validator, effects: Effects) -> pd.DataFrame:
    """Returns one row for each perturbation.

    Columns: `perturbation` (its label), `gene_id`, `symbol`, `cells` (measured), `edited_cells`
    (control cells that were edited), `coverage` (fraction of the drawn control cells that have the
    gene in sight), `mean_rank` (there, from 0, first, to 1), `changed_genes` (differentially
    expressed, mean of the two halves), `measured_shift` and `predicted_shift` (lengths of the
    shifts of embeddings at unit length, the measured one the mean of two halves), `cosine` (of the
    two), `split_half_cosine` (of the two halves), and `like_rank` (symbols of the genes that were
    edited beside it).
    """
    vocabulary, seen, targets = validator.cells.vocabulary, validator.seen, effects.targets
    edits = effects.predicted.rows(targets)
    predicted = effects.predicted.shifts[edits]
    changed = [(each.rates < SIGNIFICANT).sum(axis=1) for each in effects.differential]
    measured = effects.measured
    return pd.DataFrame(
        {
            "perturbation": effects.names,
            "gene_id": [vocabulary.gene_id_of(int(token)) for token in targets],
            "symbol": vocabulary.names_of(targets),
            "cells": validator.screen.cells,
            "edited_cells": effects.predicted.cells[edits],
            "coverage": seen.cells[targets] / seen.total,
            "mean_rank": seen.ranks[targets],
            "changed_genes": np.mean(changed, axis=0),
            "measured_shift": np.linalg.norm(measured, axis=2).mean(axis=0),
            "predicted_shift": np.linalg.norm(predicted, axis=1),
            "cosine": np.mean([_cosines(predicted, half) for half in measured], axis=0),
            "split_half_cosine": _cosines(*measured),
            "like_rank": [", ".join(vocabulary.names_of(each)) for each in effects.like_rank],
        }
    )


def _cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / np.where(lengths > 0, lengths, np.nan)
