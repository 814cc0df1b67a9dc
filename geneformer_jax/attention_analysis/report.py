"""The folder that `attend` writes: tables, figures, and one report that holds both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_jax.attention_analysis import figures
from geneformer_jax.attention_analysis.api import ALL_CELLS, HeadAttention, token_names
from geneformer_jax.attention_analysis.extractor import AttentionExtractor
from geneformer_jax.attention_analysis.statistics import STATEMENTS
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.files import atomic_write, slug
from geneformer_jax.common.log import logger
from geneformer_jax.common.provenance import write_provenance
from geneformer_jax.inference.listed_genes import describe_missing
from geneformer_jax.inference.random_control import MODEL, RANDOM
from geneformer_jax.reporting.figures import save_figure
from geneformer_jax.reporting.html import Report

REPORT, FIGURES, GENES = "report.html", "figures", "genes.parquet"
LEFT_OUT = "genes_left_out.tsv"
TABLES = ("heads", "ranks", "layers", "thirds", "statements", "groups", "pairs")
# Nature 2023: a fifth of the 24 heads of the 6-layer model attend transcription factors more.
PAPER_FRACTION = "20 % (5 of 24)"
_GROUP_ROWS = 20


def preferring(found: HeadAttention) -> pd.DataFrame:
    """Returns the fraction of heads that prefer each list, by model, beside the paper's."""
    grouped = found.heads.groupby(["list", "against", "model"], sort=False)
    rows = []
    for (name, against, model), heads in grouped:
        sides = int(heads["n_first"].iloc[0]), int(heads["n_second"].iloc[0])
        fractions = [_fraction(heads[f"prefers{suffix}"]) for suffix in ("", "_matched")]
        rows.append((name, against, model, *sides, *fractions))
    columns = ["list", "against", "model", "genes", "others", "heads that prefer it"]
    table = pd.DataFrame(rows, columns=[*columns, "heads that prefer it, ranks matched"])
    return table.assign(**{"the paper's, transcription factors": PAPER_FRACTION})


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
        report.files(aside.iterdir())
        report.provenance(provenance)
        report.write(aside / REPORT)


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
        pd.DataFrame(rows).to_csv(path, sep="\t", index=False)


def _limited(table: pd.DataFrame, only: Mapping[str, tuple[int, ...]]) -> pd.DataFrame:
    for column, numbers in only.items():
        if numbers:
            table = table[table[column].isin(numbers)]
    return table.reset_index(drop=True)


def _fraction(prefers: pd.Series) -> str:
    return f"{prefers.mean():.0%} ({prefers.sum()} of {len(prefers)})"


def _build(found: HeadAttention, extractor: AttentionExtractor, folder: Path) -> Report:
    config = extractor.model.config
    report = Report(
        "What the attention heads look at",
        f"{len(extractor.cells.lengths):,} cells, model {extractor.model.source}: {config.layers} "
        f"layers of {config.heads} heads. Attention is relative: 1 is an even share of a cell's.",
    )

    def show(name: str, figure, caption: str) -> None:
        save_figure(figure, folder / name)
        report.figure(figure, caption)

    _show_lists(found, report, show, extractor.cells.vocabulary)
    _show_layers(found, report, show)
    _show_groups(found, report, show)
    if len(found.pairs):
        report.section("Between chosen genes")
        of_model = found.pairs[found.pairs["model"] == MODEL]
        caption = "Weight that one gene gives another, mean of all heads (pairs.parquet)."
        show("pairs", figures.pair_figure(of_model), caption)
    return report


def _show_lists(found: HeadAttention, report: Report, show, vocabulary: GeneVocabulary) -> None:
    report.section(
        "Gene lists",
        "Are the genes of a list attended more than others? Rank-sum tests over genes, "
        "Benjamini-Hochberg over heads. Rank alone drives attention, so each is asked again with "
        "every gene paired to one of like mean rank: only that speaks of the genes themselves.",
    )
    report.table(preferring(found), "Fraction of heads that prefer a list (heads.parquet).")
    for each in found.comparisons:
        for line in describe_missing(each.missing(vocabulary)):
            report.paragraph(f"{each.title}: {line}; all in {LEFT_OUT}.")
        chosen = (found.heads["list"] == each.name) & (found.heads["against"] == each.against)
        caption = f"{each.title}: preference of each head (heads.parquet)."
        show(
            f"preference_{slug(each.title)}",
            figures.preference_figure(found.heads[chosen], each.title),
            caption,
        )
    report.table(found.heads, "Every test.", whole_in="heads.parquet")


def _show_layers(found: HeadAttention, report: Report, show) -> None:
    report.section("By rank and by layer")
    whole = found.ranks[found.ranks["group"] == ALL_CELLS]
    show("ranks", figures.rank_figure(whole), "Attention received by rank (ranks.parquet).")
    show(
        "layers",
        figures.layer_figure(found.layers),
        "Diversity, breadth and weight on the highest ranks, with 95 % bootstrap intervals over "
        "cells; grey lines part the thirds of the layers (layers.parquet).",
    )
    report.table(
        found.statements,
        "What the paper says of its model, and whether it holds here: each third of the layers is "
        f"compared with both others (thirds.parquet). {_warning(found)}",
    )
    report.table(found.thirds, "Differences between thirds of the layers, 95 % intervals.")


def _warning(found: HeadAttention) -> str:
    if RANDOM not in found.statements:
        return "Random weights were not asked (--control=random): they may show the same."
    same = found.statements[MODEL] == found.statements[RANDOM]
    shared = same & (found.statements[MODEL] == "holds")
    if not shared.any():
        return "No statement holds for random weights as well."
    texts = "; ".join(each.text for each, held in zip(STATEMENTS, shared, strict=True) if held)
    return f"Random weights show this too, so it was not learned: {texts}."


def _show_groups(found: HeadAttention, report: Report, show) -> None:
    report.section(
        "Genes attended beyond what rank explains",
        "Attention received less the mean of all genes at the same ranks of the same cells' group; "
        "genes are ordered by that excess less two standard errors.",
    )
    if len(found.groups):
        caption = "The first genes of each group of cells (groups.parquet)."
        show("groups", figures.group_figure(found.groups), caption)
    top = found.groups.groupby("group", sort=False).head(_GROUP_ROWS)
    report.table(top, f"The first {_GROUP_ROWS} genes of each group; all are in groups.parquet.")
