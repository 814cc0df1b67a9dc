"""Which cells of a dataset are fit for a corpus: the paper's quality control, rule by rule.

Two steps, since a rule compares each cell with all of its dataset: `measure` reads the counts once
and keeps three numbers per cell, `judge` decides on those numbers alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from geneformer_jax.cells.counts.lazy_columns import RowBlocks, iter_blocks
from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.threads import prefetch

# The 37 genes of the human mitochondrial genome: 13 proteins, 2 rRNAs, 22 tRNAs.
# fmt: off
HUMAN_MITOCHONDRIAL_IDS = frozenset(
    f"ENSG00000{number}"
    for number in (
        198695, 198712, 198727, 198763, 198786, 198804, 198840, 198886, 198888,
        198899, 198938, 209082, 210049, 210077, 210082, 210100, 210107, 210112,
        210117, 210127, 210135, 210140, 210144, 210151, 210154, 210156, 210164,
        210174, 210176, 210184, 210191, 210194, 210195, 210196, 211459, 212907,
        228253,
    )
)
# fmt: on
_MITOCHONDRIAL_PREFIX = "MT-"
NO_MITOCHONDRIAL_GENES = "no gene is known to be mitochondrial"
# Written as text, as R and categorical columns have them.
_TRUTH = {"true": 1, "t": 1, "false": 0, "f": 0}


@dataclass(frozen=True)
class QualityRules:
    """The rules, each of which None or empty switches off; the defaults are the paper's.

    Attributes:
      filter_column: obs column; cells whose value is not 1 are dropped (the original's
        `filter_pass`).
      exclude: obs column -> values; such cells are dropped (malignant cells, cell lines).
      total_sd: largest distance of a cell's total from the mean of its dataset, in standard
        deviations.
      mitochondrial_sd: the same for the fraction of mitochondrial counts.
      min_genes: minimal number of genes of the vocabulary with a count; with 7, masking 15 % of a
        cell's genes masks at least one.
    """

    filter_column: str | None = None
    exclude: Mapping[str, Sequence[str]] = field(default_factory=dict)
    total_sd: float | None = 3.0
    mitochondrial_sd: float | None = 3.0
    min_genes: int | None = 7

    def __post_init__(self):
        for name in ("total_sd", "mitochondrial_sd", "min_genes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(
                    f"{name} is {value}, but must be above 0, or None to switch it off"
                )

    @property
    def obs_columns(self) -> list[str]:
        """The obs columns that the rules read."""
        named = [self.filter_column] if self.filter_column else []
        return list(dict.fromkeys([*named, *self.exclude]))

    @property
    def compare_cells(self) -> bool:
        """Whether any rule compares a cell with all of its dataset."""
        return self.total_sd is not None or self.mitochondrial_sd is not None

    @property
    def need_counts(self) -> bool:
        """Whether any rule looks at counts, so that the source must be read for it."""
        return self.compare_cells or self.min_genes is not None


class Spread(NamedTuple):
    """Of a number of each cell.

    Attributes:
      cells: how many.
      mean: of them; 0 of none.
      variance: of the population.
    """

    cells: int
    mean: float
    variance: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """That of some values."""
        if not len(values):
            return cls(0, 0.0, 0.0)
        return cls(len(values), float(values.mean()), float(values.var()))

    @classmethod
    def joined(cls, parts: Sequence["Spread"]) -> "Spread":
        """That of the values of several parts, which depends on their order in the last digit."""
        if len(parts) == 1:
            return parts[0]
        cells, means, variances = (np.array(each) for each in zip(*parts, strict=True))
        total = int(cells.sum())
        mean = float(cells @ means) / max(total, 1)
        variance = float(cells @ (variances + (means - mean) ** 2)) / max(total, 1)
        return cls(total, mean, variance)

    def outliers(self, values: np.ndarray, max_sd: float) -> np.ndarray:
        """Bool [values], further than `max_sd` standard deviations from the mean."""
        if not self.cells:
            return np.zeros(len(values), dtype=bool)
        return np.abs(values - self.mean) > max_sd * np.sqrt(self.variance)


class Spreads(NamedTuple):
    """Of what rules compare, over the cells that the filter column and exclusions leave.

    Attributes:
      totals: see `QualityMeasures`.
      mitochondrial: the same; None where it is not known.
    """

    totals: Spread
    mitochondrial: Spread | None

    @classmethod
    def joined(cls, parts: Sequence["Spreads"]) -> "Spreads":
        """Those of the cells of several pieces of a dataset."""
        known = parts[0].mitochondrial is not None
        mitochondrial = Spread.joined([each.mitochondrial for each in parts]) if known else None
        return cls(Spread.joined([each.totals for each in parts]), mitochondrial)


class QualityMeasures(NamedTuple):
    """What the rules need to know of each cell's counts.

    Attributes:
      totals: float64 [cells], counts over all genes of the source.
      mitochondrial: float64 [cells], fraction of them from mitochondrial genes (0 for a cell
        without counts); None where the source's mitochondrial genes are not known.
      detected: int32 [cells], distinct genes of the vocabulary with a count.
    """

    totals: np.ndarray
    mitochondrial: np.ndarray | None
    detected: np.ndarray


def describe_left_out(left_out: Mapping[str, int]) -> list[str]:
    """Returns a line for each reason why cells, or edits of them, are left out."""
    return [f"  left out, {reason}: {number:,}" for reason, number in left_out.items()]


class Verdict(NamedTuple):
    """Which cells pass.

    Attributes:
      keep: bool [cells].
      dropped: reason -> number of cells; a cell counts for its first reason only.
      skipped: rules that could not be applied, with the reason.
    """

    keep: np.ndarray
    dropped: dict[str, int]
    skipped: tuple[str, ...]

    def drop(self, reason: str, cells: np.ndarray) -> None:
        """Drops cells (bool [cells]), and counts those that had passed so far."""
        self.dropped[reason] = int((self.keep & cells).sum())
        self.keep[cells] = False

    @classmethod
    def joined(cls, parts: Sequence["Verdict"]) -> "Verdict":
        """One verdict on the cells of several, in order."""
        dropped: Counter[str] = Counter()
        for part in parts:
            dropped.update(part.dropped)
        return cls(np.concatenate([part.keep for part in parts]), dict(dropped), ())


def mitochondrial_columns(source: CountSource) -> np.ndarray:
    """Bool [columns]: mitochondrial genes, by a symbol MT-... (mt-...) or a human Ensembl id."""
    names = [source.gene_ids] if source.symbols is None else [source.gene_ids, source.symbols]
    by_symbol = [np.char.startswith(np.char.upper(each), _MITOCHONDRIAL_PREFIX) for each in names]
    unversioned = [name.partition(".")[0].upper() for name in source.gene_ids.tolist()]
    by_id = [name in HUMAN_MITOCHONDRIAL_IDS for name in unversioned]
    return np.logical_or.reduce([*by_symbol, by_id])


def measure(
    source: CountSource, tokens: np.ndarray, mitochondrial: np.ndarray | None = None
) -> QualityMeasures:
    """Reads all counts of a source once, in bounded memory.

    Args:
      source: of raw counts.
      tokens: int [columns], the token of each column's gene, -1 where the vocabulary has none;
        columns of the same token are one gene.
      mitochondrial: bool [columns]; None for `mitochondrial_columns`.

    Raises:
      InputError: as from `CountSource.batches`.
    """
    if mitochondrial is None:
        mitochondrial = mitochondrial_columns(source)
    known = np.flatnonzero(np.asarray(tokens) >= 0)
    genes, gene_of_known = np.unique(np.asarray(tokens)[known], return_inverse=True)
    columns_to_genes = sparse.csr_matrix(
        (np.ones(len(known), np.int32), (known, gene_of_known)), shape=(len(tokens), len(genes))
    )
    totals, fractions, detected = [], [], []
    for batch in prefetch(source.batches()):
        totals.append(batch.totals)
        counts = batch.counts @ mitochondrial.astype(np.float64)
        fractions.append(counts / np.where(batch.totals > 0, batch.totals, 1))
        detected.append(_distinct_genes(batch.counts, columns_to_genes))
    return QualityMeasures(
        np.concatenate(totals),
        np.concatenate(fractions) if mitochondrial.any() else None,
        np.concatenate(detected),
    )


def judge(
    rules: QualityRules,
    obs: pd.DataFrame | RowBlocks[pd.DataFrame],
    measures: QualityMeasures | None = None,
    spreads: Spreads | None = None,
) -> Verdict:
    """Applies the rules to the cells of one dataset.

    The filter column and the exclusions come first; means and standard deviations (of the
    population, as `np.std`) are of the cells that they leave.

    Args:
      rules: to apply.
      obs: [cells], at least the rules' `obs_columns`; gone through in blocks.
      measures: of the same cells; may be None if no rule needs counts.
      spreads: of the dataset that the cells are a part of; None if they are all of it.

    Raises:
      InputError: the filter column is not made of numbers.
    """
    verdict = _judge_table(rules, obs)
    if not rules.need_counts:
        return verdict
    return _judge_counts(rules, verdict, measures, spreads or _spreads(verdict, measures))


def spreads_of(
    rules: QualityRules, obs: pd.DataFrame | RowBlocks[pd.DataFrame], measures: QualityMeasures
) -> Spreads:
    """Returns the means and spreads of some cells, see `judge`."""
    return _spreads(_judge_table(rules, obs), measures)


def _spreads(verdict: Verdict, measures: QualityMeasures) -> Spreads:
    values = measures.totals, measures.mitochondrial
    return Spreads(*(None if each is None else Spread.of(each[verdict.keep]) for each in values))


def _judge_table(rules: QualityRules, obs: pd.DataFrame | RowBlocks[pd.DataFrame]) -> Verdict:
    return Verdict.joined([_judge_columns(rules, block) for block in iter_blocks(obs)])


def _judge_columns(rules: QualityRules, obs: pd.DataFrame) -> Verdict:
    """Applies the filter column and the exclusions, of which each looks at one cell alone."""
    verdict = Verdict(np.ones(len(obs), dtype=bool), {}, ())
    if rules.filter_column:
        verdict.drop(f"{rules.filter_column} is not 1", ~_passes(obs[rules.filter_column]))
    for column, values in rules.exclude.items():
        excluded = obs[column].astype(str).isin([str(value) for value in values])
        verdict.drop(f"{column} is {' or '.join(map(str, values))}", excluded.to_numpy())
    return verdict


def _judge_counts(
    rules: QualityRules, verdict: Verdict, measures: QualityMeasures, spreads: Spreads
) -> Verdict:
    """Adds to the verdict of `_judge_columns` the rules that look at counts."""
    drop, skipped = verdict.drop, []
    if rules.total_sd is not None:
        reason = f"total is beyond {rules.total_sd:g} s.d. of the mean"
        drop(reason, spreads.totals.outliers(measures.totals, rules.total_sd))
    if rules.mitochondrial_sd is not None:
        reason = f"mitochondrial fraction is beyond {rules.mitochondrial_sd:g} s.d. of the mean"
        if measures.mitochondrial is None:
            skipped.append(f"{reason}: {NO_MITOCHONDRIAL_GENES}")
        else:
            outliers = spreads.mitochondrial.outliers
            drop(reason, outliers(measures.mitochondrial, rules.mitochondrial_sd))
    if rules.min_genes is not None:
        reason = f"fewer than {rules.min_genes} genes of the vocabulary"
        drop(reason, measures.detected < rules.min_genes)
    return verdict._replace(skipped=tuple(skipped))


def _distinct_genes(counts: sparse.csr_matrix, columns_to_genes: sparse.csr_matrix) -> np.ndarray:
    """int32 [cells], distinct genes with a count."""
    if columns_to_genes.shape[1] == columns_to_genes.nnz:
        known = np.diff(columns_to_genes.indptr) > 0
        ends = np.concatenate([[0], np.cumsum(known[counts.indices])])[counts.indptr]
        return np.diff(ends).astype(np.int32)
    present = sparse.csr_matrix(
        (np.ones(counts.nnz, np.int32), counts.indices, counts.indptr), shape=counts.shape
    )
    return np.diff((present @ columns_to_genes).indptr).astype(np.int32)


def _passes(column: pd.Series) -> np.ndarray:
    """Bool [cells], equal to 1 or true, a text or not; a missing value is not."""
    numbers = pd.to_numeric(column.astype(object).map(_truth), errors="coerce")
    wrong = numbers.isna().to_numpy() & column.notna().to_numpy()
    if wrong.any():
        value = column[wrong].iloc[0]
        raise InputError(
            f'filter column "{column.name}" has the value "{value}", but cells are kept where it '
            "is 1 or true; name such a column, or use `exclude`"
        )
    return (numbers == 1).to_numpy()


def _truth(value: object) -> object:
    """Returns 1 or 0 for a truth value written as text, anything else as it is."""
    return _TRUTH.get(value.strip().lower(), value) if isinstance(value, str) else value
