"""The folder that `attend` writes: tables, figures, and one report that holds both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_jax.attention_analysis import figures
from geneformer_jax.attention_analysis.api import ALL_CELLS, HeadAttention, token_names
from geneformer_jax.attention_analysis.cell_groups import describe_skipped
from geneformer_jax.attention_analysis.comparisons import (
    MAX_DISTANCE,
    MIN_PAIRS,
    SIGNIFICANT,
    has_own_matching,
)
from geneformer_jax.attention_analysis.extractor import AttentionExtractor
from geneformer_jax.attention_analysis.layers import FAILS, HOLDS, UNDECIDED
from geneformer_jax.attention_analysis.summary import MIN_FACTORS, answers, heads_of, preferring
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.files import atomic_write, slug
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import write_provenance
from geneformer_jax.common.tables import write_csv
from geneformer_jax.inference.listed_genes import describe_missing
from geneformer_jax.inference.random_control import MODEL
from geneformer_jax.reporting.figures import save_figure
from geneformer_jax.reporting.html import Report
from geneformer_jax.reporting.index import refresh_index
from geneformer_jax.reporting.left_out import add_left_out

REPORT, FIGURES, GENES = "report.html", "figures", "genes.parquet"
LEFT_OUT = "genes_left_out.tsv"
TABLES = ("heads", "ranks", "layers", "thirds", "statements", "groups", "pairs")
_GROUP_ROWS = 20
# What the sections and tables show; each heading of a table is explained with it.
_LISTS = (
    "Are the genes of a list attended more than others? Rank-sum tests over genes, "
    "Benjamini-Hochberg over heads. Rank alone drives attention, so each is asked again of genes "
    "of like rank only: every gene paired with one of the other side whose mean rank is at most "
    f"{MAX_DISTANCE:g} standard deviations (of log rank) away, the others left out. Only that "
    "speaks of the genes themselves."
)
_PREFERRING = (
    "Heads that prefer a list: its genes are attended more, at a false discovery rate below "
    f"{SIGNIFICANT:g}. Genes, others: how many are compared. Pairs of like rank: how many genes "
    "found a partner. The paper's fraction (ranks not matched) stands only beside a list that is "
    f"called one of transcription factors and has {MIN_FACTORS} or more, against other genes."
)
_EVERY_TEST = (
    "Every test. Genes, others: of the list and beside it. Effect: rank-biserial "
    "correlation, from -1 to 1, above 0 where the list is attended more. p of the rank-sum test; "
    "FDR: Benjamini-Hochberg over heads; prefers: FDR below "
    f"{SIGNIFICANT:g} and effect above 0. Of like rank: the same of the pairs of like rank, empty "
    "where there are too few."
)
_HEADINGS = {
    "n_first": "genes",
    "n_second": "others",
    "fdr": "FDR",
    "n_matched": "pairs of like rank",
    "effect_matched": "effect, of like rank",
    "p_matched": "p, of like rank",
    "fdr_matched": "FDR, of like rank",
    "prefers_matched": "prefers, of like rank",
}
_LAYERS = (
    "Received: 1 is an even share of a cell's attention. Diversity: mean Jensen-Shannon distance "
    "between what two heads of a layer attend. Breadth: ranks that a gene attends in effect, as a "
    "fraction of the cell's tokens. Top: weight on the highest tenth of a cell's ranks, 0.1 where "
    "attention is even. All three go from 0 to 1."
)
_STATEMENTS = (
    "What the paper says of its model, and whether it holds here: each third of the layers is "
    f'compared with both others. "{HOLDS}": both differences are above min_difference with their '
    f'whole 95 % interval; "{FAILS}": one is below it with its whole interval; else '
    f'"{UNDECIDED}" (statements.parquet). Random weights of most shapes differ by less than '
    "min_difference, but those of the largest models by more."
)
_THIRDS = (
    "Differences between thirds of the layers: mean of the measure in one third less that in the "
    "one it is compared with, over cells; low and high: its 95 % interval; min_difference: what a "
    "statement needs (thirds.parquet)."
)
_GROUPS = (
    "Attention received less the mean of all genes at the same ranks of the same cells' group; "
    "genes are ordered by that excess less two standard errors, and shown where this is above 0. "
    "Not compared with random weights."
)
_FIRST_GENES = (
    f"At most {_GROUP_ROWS} genes of each group; all are in groups.parquet. n_cells: cells of the "
    "group that have the gene; received, expected_by_rank, excess: means over all heads; "
    "excess_low: excess less two standard errors; most_layer, most_head: the head that exceeds the "
    "most."
)


def write_report(
    found: HeadAttention,
    extractor: AttentionExtractor,
    output: Path,
    provenance: Mapping[str, Any],
    only: Mapping[str, tuple[int, ...]],
) -> None:
    """Writes the folder, whole or not at all.

    It holds a parquet table of each field of HeadAttention, `genes.parquet` (every gene, layer and
    head, of all cells and of each group), `figures/*.png` and `.pdf`, `report.html` and
    `provenance.json`; and genes_left_out.tsv if listed genes are unknown or in too few cells.

    Args:
      found: what was found.
      extractor: of the model.
      output: folder to write.
      provenance: of the run, see `common.provenance`.
      only: "layer" and "head" -> the numbers that the table of genes and pairs is limited to; all
        if empty.
    """
    with atomic_write(output) as aside:
        (aside / FIGURES).mkdir(parents=True)
        for name in TABLES:
            table = getattr(found, name)
            (_limited(table, only) if name == "pairs" else table).to_parquet(
                aside / f"{name}.parquet", index=False
            )
        _write_genes(found, extractor, aside / GENES, only)
        _write_missing(found, extractor, aside / LEFT_OUT)
        report = _build(found, extractor, aside / FIGURES)
        write_provenance(aside, provenance)
        add_left_out(report, provenance["counts"])
        report.files(aside.iterdir())
        report.provenance(provenance)
        report.write(aside / REPORT)
    refresh_index(output)


def _write_genes(
    found: HeadAttention, extractor: AttentionExtractor, path: Path, only: Mapping
) -> None:
    writer = None
    for table in found.gene_tables(*token_names(extractor)):
        rows = pa.Table.from_pandas(_limited(table, only), preserve_index=False)
        writer = writer or pq.ParquetWriter(path, rows.schema)
        writer.write_table(rows)
    writer.close()


def _write_missing(found: HeadAttention, extractor: AttentionExtractor, path: Path) -> None:
    """Writes and logs which listed genes are left out, if any."""
    vocabulary = extractor.cells.vocabulary
    lists = {each.name: each.missing(vocabulary) for each in found.comparisons}
    for name, missing in lists.items():
        for line in describe_missing(missing):
            logger.warning(f"{name}: {line}")
    rows = [{"list": name, **each} for name, missing in lists.items() for each in missing]
    if rows:
        write_csv(pd.DataFrame(rows), path, sep="\t")


def _limited(table: pd.DataFrame, only: Mapping[str, tuple[int, ...]]) -> pd.DataFrame:
    for column, numbers in only.items():
        if numbers:
            table = table[table[column].isin(numbers)]
    return table.reset_index(drop=True)


def _build(found: HeadAttention, extractor: AttentionExtractor, folder: Path) -> Report:
    config = extractor.model.config
    report = Report(
        "What the attention heads look at",
        f"{len(extractor.cells.lengths):,} cells, model {extractor.model.source}: {config.layers} "
        f"layers of {config.heads} heads. Attention is relative: 1 is an even share of a cell's.",
    )

    def show(name: str, figure, caption: str, chart) -> None:
        save_figure(figure, folder / name)
        report.figure(figure, caption, chart)

    for line in answers(found):
        report.conclude(f"{line[0].upper()}{line[1:]}.")
    if skipped := describe_skipped(extractor.groups):
        report.paragraph(f"{skipped[0].upper()}{skipped[1:]}.")
    _show_lists(found, report, show, extractor.cells.vocabulary)
    _show_layers(found, report, show)
    _show_groups(found, report, show)
    if len(found.pairs):
        report.section("Between chosen genes")
        of_model = found.pairs[found.pairs["model"] == MODEL]
        caption = "Weight that one gene gives another, mean of the model's heads (pairs.parquet)."
        show("pairs", figures.pair_figure(of_model), caption, figures.pair_chart(of_model))
    return report


def _show_lists(found: HeadAttention, report: Report, show, vocabulary: GeneVocabulary) -> None:
    report.section("Gene lists", _LISTS)
    report.table(preferring(found), _PREFERRING)
    for each in found.comparisons:
        for line in describe_missing(each.missing(vocabulary)):
            report.paragraph(f"{each.title}: {line}; all in {LEFT_OUT}.")
        heads = heads_of(found, each)
        show(
            f"preference_{slug(each.title)}",
            figures.preference_figure(heads, each.title),
            f"{each.title}: preference of each head, * where FDR is below {SIGNIFICANT:g} "
            f"(heads.parquet). {_unmatched(heads)}",
            figures.preference_chart(heads),
        )
    report.table(found.heads, _EVERY_TEST, whole_in="heads.parquet", name="heads", words=_HEADINGS)


def _unmatched(heads: pd.DataFrame) -> str:
    """Says why there is no map of genes of like rank, if there is none."""
    if has_own_matching(heads):
        return ""
    pairs = heads["n_matched"].iloc[0]
    if heads["p_matched"].isna().all():
        return f"Only {pairs} pairs are of like rank, and a test needs {MIN_PAIRS}."
    return f"All genes of both sides are of like rank ({pairs} pairs): that test is the same."


def _show_layers(found: HeadAttention, report: Report, show) -> None:
    report.section("By rank and by layer", _LAYERS)
    whole = found.ranks[found.ranks["group"] == ALL_CELLS]
    caption = "Attention received by rank (ranks.parquet)."
    show("ranks", figures.rank_figure(whole), caption, figures.rank_chart(whole))
    show(
        "layers",
        figures.layer_figure(found.layers),
        "Diversity, breadth and weight on the highest ranks, with 95 % bootstrap intervals over "
        "cells (layers.parquet).",
        figures.layer_chart(found.layers),
    )
    report.table(found.statements, _STATEMENTS)
    report.table(found.thirds, _THIRDS)


def _show_groups(found: HeadAttention, report: Report, show) -> None:
    report.section("Genes attended beyond what rank explains", _GROUPS)
    surely = found.groups[found.groups["excess_low"] > 0]
    without = [name for name in found.groups["group"].unique() if name not in set(surely["group"])]
    if without:
        report.paragraph(f"No gene is surely attended beyond its rank in: {', '.join(without)}.")
    if len(surely):
        caption = "The first genes of each group of cells, of the model (groups.parquet)."
        chart = figures.group_chart(found.groups)
        show("groups", figures.group_figure(found.groups), caption, chart)
        report.table(surely.groupby("group", sort=False).head(_GROUP_ROWS), _FIRST_GENES)
