"""A report of what a corpus of tokenised cells holds, beside the corpus of the paper."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.store.label_counts import warnings_of
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.files import atomic_write, remove, require_new_folder, slug
from geneformer_jax.common.provenance import (
    FILE_NAME,
    describe_run,
    read_provenance,
    write_provenance,
    written_configuration,
)
from geneformer_jax.common.workdir import as_json
from geneformer_jax.reporting import corpus_figures
from geneformer_jax.reporting.corpus_summary import CorpusSummary, summarise_corpus
from geneformer_jax.reporting.figures import save_figure
from geneformer_jax.reporting.html import Report
from geneformer_jax.reporting.index import refresh_index

REPORT, GENES, FIGURES = "report.html", "genes.parquet", "figures"

GENECORPUS_CELLS = 27_406_217
# Nature 2023, "Assembly of Genecorpus-30M"; the numbers of genes found in more than 100 and 1,000
# cells come from the authors' notebook of gene detections.
GENECORPUS_30M = {
    "files (datasets)": "561",
    "cells before quality control": "29,900,531",
    "cells": f"{GENECORPUS_CELLS:,}",
    "cells that quality control left out": "8.3%",
    "cells fully covered by the context": "93% (of 2,048)",
    "genes found in any cell": "25,424",
    "genes found in more than 100 cells": "22,735",
    "genes found in more than 1,000 cells": "21,167",
    "cells that a gene is found in (median)": "173,152",
}

_SIDES = ("kept", "dropped")
Show = Callable[[str, Figure, str, "alt.TopLevelMixin"], None]


def write_corpus_report(
    folder: Path | str, output: Path | str, groupby: Sequence[str] = ()
) -> CorpusSummary:
    """Summarises a cell store in a folder with report.html, figures and a table of genes.

    The folder holds `report.html` (self-contained), `figures/*.png` and `.pdf`, `genes.parquet`
    (gene_id, symbol, cells) and `provenance.json`.

    Args:
      folder: a complete cell store.
      output: a new folder, or that of the same report, which is made anew, as the store may
        have grown.
      groupby: obs columns to show the cells by, such as "tissue".

    Raises:
      InputError: as `summarise_corpus`, or `output` holds other files.
    """
    output = require_own_report(folder, output, groupby)
    store = CellStore.open(folder)
    summary = summarise_corpus(folder, groupby)
    genes = _gene_table(summary, store.vocabulary)
    configuration = _configuration(store.folder, output, groupby)
    counts = {"cells": summary.cells, "genes_found": int((genes["cells"] > 0).sum())}
    provenance = describe_run("corpus_report", configuration, [store.folder], counts)
    with atomic_write(output) as aside:
        (aside / FIGURES).mkdir(parents=True)
        genes.to_parquet(aside / GENES, index=False)
        report = _build_report(summary, genes, store, aside / FIGURES)
        write_provenance(aside, provenance)
        report.files(aside.iterdir())
        report.provenance({"report": provenance, "store": read_provenance(store.folder)})
        report.write(aside / REPORT)
        _remove_own(output)
    refresh_index(output)
    return summary


def require_own_report(folder: Path | str, output: Path | str, groupby: Sequence[str] = ()) -> Path:
    """Returns `output` as a Path if `write_corpus_report` may write it; of the same arguments.

    Raises:
      InputError: `output` holds other files, or the report of another store.
    """
    output = Path(output)
    own = as_json(_configuration(Path(folder), output, groupby))
    if written_configuration(output / FILE_NAME) == own:
        return output
    return require_new_folder(output)


def _remove_own(output: Path) -> None:
    """Removes a report, its provenance last: killed before, the next run knows it for its own."""
    if output.is_dir():
        for path in sorted(output.iterdir(), key=lambda path: path.name == FILE_NAME):
            remove(path)
    remove(output)


def _configuration(store: Path, output: Path, groupby: Sequence[str]) -> dict[str, object]:
    return {"store": store.resolve(), "output": output, "groupby": list(groupby)}


def comparison_table(summary: CorpusSummary) -> pd.DataFrame:
    """The corpus beside Genecorpus-30M: columns measure, this corpus, Genecorpus-30M."""
    found = summary.cells_per_gene
    lost = 1 - summary.cells / summary.cells_in_files
    ours = [
        f"{len(summary.sources):,}",
        f"{summary.cells_in_files:,}",
        f"{summary.cells:,}",
        f"{lost:.1%}",
        f"{_at_least(summary)}{summary.covered:.1%} (of {summary.max_length:,})",
        *(f"{(found > cells).sum():,}" for cells in (0, 100, 1000)),
        f"{summary.median_detection:,.0f}",
    ]
    table = {"measure": list(GENECORPUS_30M), "this corpus": ours}
    return pd.DataFrame({**table, "Genecorpus-30M": list(GENECORPUS_30M.values())})


def _at_least(summary: CorpusSummary) -> str:
    return "" if summary.covered_exactly else "at least "


def _gene_table(summary: CorpusSummary, vocabulary: GeneVocabulary) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "gene_id": vocabulary.gene_ids,
            "symbol": vocabulary.symbols,
            "cells": summary.cells_per_gene,
        }
    )
    return table.sort_values("cells", ascending=False, kind="stable", ignore_index=True)


def _build_report(
    summary: CorpusSummary, genes: pd.DataFrame, store: CellStore, figures: Path
) -> Report:
    report = Report(
        f"Corpus {store.folder.name}",
        f"{summary.cells:,} cells of {len(summary.sources):,} files, tokenised with the "
        f"{len(store.vocabulary.gene_ids):,} {store.vocabulary.species} genes of vocabulary "
        f"{store.vocabulary.hash[:12]}.",
    )

    def show(name: str, figure: Figure, caption: str, chart: alt.TopLevelMixin) -> None:
        save_figure(figure, figures / name)
        report.figure(figure, caption, chart)

    lost = 1 - summary.cells / summary.cells_in_files
    report.conclude(
        f"{summary.cells:,} cells, where Geneformer was pretrained on {GENECORPUS_CELLS:,}; "
        f"{lost:.1%} of the cells in the files were left out, and {_at_least(summary)}"
        f"{summary.covered:.1%} of the others fit the context with all their genes."
    )
    report.section("Beside Genecorpus-30M")
    report.table(comparison_table(summary), "This corpus beside the one of the paper.")
    _show_cells(report, show, summary)
    _show_lengths(report, show, summary)
    _show_genes(report, show, summary, genes)
    return report


def _show_cells(report: Report, show: Show, summary: CorpusSummary) -> None:
    report.section("Cells")
    sources = summary.sources.sort_values("cells", ascending=False, kind="stable")
    counts = pd.Series(sources["cells"].to_numpy(), [Path(path).name for path in sources["path"]])
    figure, chart = corpus_figures.bar_figure(counts), corpus_figures.bar_chart(counts)
    show("cells_per_file", figure, "Cells of each file.", chart)
    headings = {"cells_in_file": "cells in file", "cells": "cells kept", "dropped": "left out"}
    report.table(sources.rename(columns=headings), "Cells of each file, in numbers.")
    for remark in summary.remarks:
        report.paragraph(f"{remark.replace('`', '')}.")
    for name, values in summary.groups.items():
        caption = f"Cells by {name}."
        figure, chart = corpus_figures.bar_figure(values), corpus_figures.bar_chart(values)
        show(f"cells_per_{slug(name)}", figure, caption, chart)
        table = pd.DataFrame({name: values.index, "cells": values.to_numpy()})
        table["percent of cells"] = 100 * table["cells"] / summary.cells
        report.table(table, f"Cells by {name}, in numbers.")
    report.section("Quality control")
    lost = pd.Series({"kept": summary.cells, **summary.dropped})
    caption = f"What became of the {summary.cells_in_files:,} cells in the files."
    figure, chart = corpus_figures.bar_figure(lost), corpus_figures.bar_chart(lost)
    show("quality_control", figure, caption, chart)
    for warning in warnings_of(summary.by_label):
        report.paragraph(f"Warning: {warning}.")
    for name, labels in summary.by_label.items():
        report.table(_label_table(name, labels), f"Cells kept and left out, by {name}.")


def _label_table(name: str, labels: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    kept, dropped = (np.array([cells[side] for cells in labels.values()]) for side in _SIDES)
    table = {name: list(labels), "cells kept": kept, "left out": dropped}
    return pd.DataFrame(table | {"percent left out": 100 * dropped / (kept + dropped)})


def _show_lengths(report: Report, show: Show, summary: CorpusSummary) -> None:
    text = (
        f"{summary.covered:.2%} of the cells have no more genes than fit into "
        f"{summary.max_length:,} tokens, so the context covers them fully."
    )
    if not summary.covered_exactly:
        text = (
            f"{summary.covered:.2%} of the cells have fewer than {summary.max_length:,} tokens, so "
            "the context covers all their genes. Cells at the limit have as many genes as fit, or "
            "more that were cut off: this store does not know."
        )
    report.section("Lengths", text)
    figure, chart = corpus_figures.length_figure(summary), corpus_figures.length_chart(summary)
    show("lengths", figure, "Cells by number of tokens.", chart)


def _show_genes(report: Report, show: Show, summary: CorpusSummary, genes: pd.DataFrame) -> None:
    missing = int((genes["cells"] == 0).sum())
    report.section(
        "Genes",
        f"A gene counts as found in a cell if it is among the cell's {summary.max_length:,} "
        f"highest-ranked tokens. {missing:,} of {len(genes):,} genes are found in no cell.",
    )
    caption = "Genes found in at least that many cells."
    figure = corpus_figures.detection_figure(summary)
    show("genes_by_cells", figure, caption, corpus_figures.detection_chart(summary))
    report.table(
        genes,
        "Genes by the number of cells they are found in.",
        whole_in=GENES,
        name="genes",
        words={"gene_id": "gene id", "symbol": "gene"},
    )
