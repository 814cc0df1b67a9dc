"""Reading what is compared: cells of reference and query, their labels, and what can be refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.embedding.comparison import draw_rows
from geneformer_jax.inference.cells import ChosenCells, open_cells, select_cells
from geneformer_jax.inference.columns import check_columns
from geneformer_jax.inference.counts import expression_reader
from geneformer_jax.label_transfer.features import COUNTS, EMBEDDING, Features, count_features
from geneformer_jax.label_transfer.scores import FOLDS
from geneformer_jax.label_transfer.transfer import Transferred, transfer
from geneformer_jax.model.pretrained import PretrainedModel

# More teach these classifiers little, and take hours.
MAX_LEARNED_CELLS = 20_000

Cells = ad.AnnData | Path | str


@dataclass(frozen=True)
class TransferInput:
    """Reference and query, read and checked.

    Attributes:
      model: that embeds them.
      reference: cells with a label that at least 5 of them have.
      query: all cells.
      labels: [cells] text, of the reference.
      known: [cells] labels of the query, None where there is none.
      groups: [cells] of the reference, or None.
      expression: reads the log expression of both; None where one came without counts.
    """

    model: PretrainedModel
    reference: ChosenCells
    query: ChosenCells
    labels: np.ndarray
    known: np.ndarray
    groups: np.ndarray | None
    expression: tuple | None

    def finish(self, reference_RD: np.ndarray, query_QD: np.ndarray) -> Transferred:
        """Carries the labels over, given the embeddings of both."""
        features = {EMBEDDING: Features(reference_RD, query_QD)}
        if self.expression is None:
            logger.warning("no counts beside both: no components of counts to compare with")
        else:
            sizes = len(self.reference.rows), len(self.query.rows)
            features[COUNTS] = count_features(*self.expression, sizes)
        return transfer(features, self.labels, self.known, self.groups)


def read_input(
    model: PretrainedModel,
    reference: Cells,
    query: Cells,
    label: str,
    group: str = "",
    **reading: Unpack[CountArguments],
) -> TransferInput:
    """Opens reference and query, and finds the labels.

    Args:
      model: that embeds them.
      reference, query: cell stores or raw counts.
      label: obs column of the reference; the query may have it too.
      group: obs column of the reference such as donors, or "".
      reading: of counts, see `CountOptions`.

    Raises:
      InputError: cells cannot be read; the reference has no such columns, fewer than two labels of
        at least 5 cells, or fewer groups than folds.
    """
    opened = [select_cells(open_cells(each, model, **reading)) for each in (reference, query)]
    check_columns(opened[0].obs, [label, *([group] if group else [])])
    own = _labels(opened[0].obs, label)
    rows = _rows_to_learn(own, label)
    learned = ChosenCells(opened[0].source, opened[0].rows[rows], opened[0].dropped)
    groups = _groups(learned.obs, group)
    readers = [
        expression_reader(cells, given, reading)
        for cells, given in ((learned, reference), (opened[1], query))
    ]
    return TransferInput(
        model=model,
        reference=learned,
        query=opened[1],
        labels=own[rows].astype(str),
        known=_labels(opened[1].obs, label),
        groups=groups,
        expression=tuple(readers) if all(readers) else None,
    )


def _labels(obs: pd.DataFrame, column: str) -> np.ndarray:
    """Returns labels as text, None where a cell has none; all None without such a column."""
    if column not in obs:
        return np.full(len(obs), None, dtype=object)
    values = obs[column].astype(object)
    return np.array(
        [str(each) if known else None for each, known in zip(values, values.notna(), strict=True)],
        dtype=object,
    )


def _rows_to_learn(labels: np.ndarray, column: str) -> np.ndarray:
    sizes = pd.Series(labels).value_counts()
    frequent = sizes.index[sizes >= FOLDS]
    if len(frequent) < 2:
        raise InputError(
            f'the reference has {len(frequent)} labels of at least {FOLDS} cells in "{column}"; '
            "two are needed"
        )
    rows = np.flatnonzero(pd.Series(labels).isin(frequent))
    if len(rows) < len(labels):
        logger.info(
            f"{len(labels) - len(rows):,} cells of the reference are left out: no label, or one of "
            f"fewer than {FOLDS} cells"
        )
    if len(rows) > MAX_LEARNED_CELLS:
        logger.info(f"{MAX_LEARNED_CELLS:,} of {len(rows):,} cells of the reference are drawn")
    return rows[draw_rows(len(rows), MAX_LEARNED_CELLS)]


def _groups(obs: pd.DataFrame, column: str) -> np.ndarray | None:
    if not column:
        return None
    groups = obs[column].astype(str).to_numpy()
    if len(np.unique(groups)) < FOLDS:
        raise InputError(
            f'the reference has {len(np.unique(groups))} groups in "{column}", but each of {FOLDS} '
            "folds needs one; leave `group` out or give more"
        )
    return groups
