import json
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from scipy import sparse

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.store.builder import StoreBuild
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.tokenization.quality_control import QualityRules
from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions
from geneformer_jax.cells.tokenization.vocabulary import V2_SPECIAL_TOKENS, GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import remove
from geneformer_jax.interop.store_exchange import dataset_to_store
from geneformer_jax.reporting import corpus_figures, corpus_report
from geneformer_jax.reporting.corpus_report import comparison_table, write_corpus_report
from geneformer_jax.reporting.corpus_summary import summarise_corpus
from tests.helpers.pages import read_page

GENES, LIMIT = 40, 20
FILES = {"heart": 300, "lung": 110}
TISSUES = {"heart": ["heart", None, "lung"], "lung": ["lung", "lung", "lung"]}


def vocabulary() -> GeneVocabulary:
    ids = np.array([f"ENSG{number:011d}" for number in range(GENES)])
    return GeneVocabulary(ids, np.char.add("G", ids), np.ones(GENES), V2_SPECIAL_TOKENS)


def counts_of(seed: int, cells: int) -> np.ndarray:
    """Cells of very different numbers of genes; the last gene is in none of them."""
    rng = np.random.default_rng(seed)
    fractions = rng.random((cells, 1))
    counts = (rng.random((cells, GENES)) < fractions) * rng.integers(1, 9, (cells, GENES))
    counts[:, -1] = 0
    counts[0] = 0
    return counts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A store of two files, and their raw counts."""
    folder = tmp_path_factory.mktemp("corpus")
    counts = {name: counts_of(seed, cells) for seed, (name, cells) in enumerate(FILES.items())}
    for name, matrix in counts.items():
        obs = pd.DataFrame({"tissue": np.resize(np.array(TISSUES[name], object), len(matrix))})
        obs.index = [f"{name}-{row}" for row in range(len(matrix))]
        var = pd.DataFrame(index=vocabulary().gene_ids)
        data = ad.AnnData(sparse.csr_matrix(matrix.astype(np.float32)), obs, var)
        data.write_h5ad(folder / f"{name}.h5ad")
    rules = QualityRules(total_sd=None, mitochondrial_sd=None, min_genes=3)
    recipe = TokenizerOptions(max_length=LIMIT, quality=rules)
    build = StoreBuild(folder / "store", vocabulary(), recipe, CountOptions(), ["tissue"])
    build.survey([folder / f"{name}.h5ad" for name in FILES])
    build.write()
    build.finish({})
    return folder / "store", counts


def test_the_summary_counts_what_a_slow_count_finds(corpus):
    store, counts = corpus
    summary = summarise_corpus(store, ["tissue"])
    genes = {name: (matrix > 0).sum(axis=1) for name, matrix in counts.items()}
    kept = {name: number[number >= 3] for name, number in genes.items()}
    assert summary.cells == sum(map(len, kept.values()))
    assert summary.cells_in_files == 410
    assert sum(summary.dropped.values()) == 410 - summary.cells > 2
    assert summary.sources["cells"].tolist() == [len(kept["heart"]), len(kept["lung"])]
    assert summary.sources["cells_in_file"].tolist() == [300, 110]
    lengths = np.minimum(np.concatenate(list(kept.values())) + 2, LIMIT)
    assert summary.length_counts.tolist() == [(lengths == n).sum() for n in range(LIMIT + 1)]
    fitting = np.concatenate(list(kept.values())) <= LIMIT - 2
    assert summary.covered_exactly and summary.covered == pytest.approx(fitting.mean())
    assert (lengths < LIMIT).mean() < summary.covered < 0.9
    values = {"heart": 0, "no value": 0, "lung": 0}
    for name, tissues in TISSUES.items():
        for row in np.flatnonzero(genes[name] >= 3):
            values[tissues[row % 3] or "no value"] += 1
    assert summary.groups["tissue"].to_dict() == values
    assert summary.groups["tissue"].is_monotonic_decreasing


def test_genes_count_once_per_cell_even_where_a_dataset_repeats_them(tmp_path):
    cells = [[2, 4, 5, 4, 3], [2, 5, 3], [2, 6, 6, 6, 3]]
    pq.write_table(pa.table({"input_ids": cells}), tmp_path / "cells.parquet")
    dataset_to_store(tmp_path / "cells.parquet", tmp_path / "store", vocabulary(), LIMIT)
    summary = summarise_corpus(tmp_path / "store")
    assert summary.cells_per_gene.tolist() == [1, 2, 1] + [0] * (GENES - 3)
    assert summary.median_detection == 1
    assert summary.covered == 1 and not summary.covered_exactly
    table = comparison_table(summary).set_index("measure")
    measure = "cells fully covered by the context"
    assert table.loc[measure, "this corpus"] == "at least 100.0% (of 20)"


def test_cells_per_gene_are_those_of_the_stored_tokens(corpus):
    store = CellStore.open(corpus[0])
    expected = np.zeros(GENES, int)
    for cell in store.read(range(len(store))):
        for token in set(cell.tolist()) - {2, 3}:
            expected[token - 4] += 1
    assert summarise_corpus(corpus[0]).cells_per_gene.tolist() == expected.tolist()
    assert expected[-1] == 0 < expected[0]


def test_the_comparison_states_both_corpora(corpus):
    table = comparison_table(summarise_corpus(corpus[0])).set_index("measure")
    assert table.loc["cells before quality control"].tolist() == ["410", "29,900,531"]
    assert table.loc["genes found in any cell"].tolist() == [str(GENES - 1), "25,424"]
    assert table.loc["genes found in more than 1,000 cells", "this corpus"] == "0"
    assert table.loc["cells fully covered by the context", "Genecorpus-30M"] == "93% (of 2,048)"


def test_the_report_folder_is_whole_and_self_contained(corpus, tmp_path):
    output = tmp_path / "report"
    summary = write_corpus_report(corpus[0], output, ["tissue"])
    names = {"cells_per_file", "cells_per_tissue", "quality_control", "lengths", "genes_by_cells"}
    figures = {path.stem: path for path in (output / "figures").glob("*.png")}
    assert set(figures) == names
    for path in figures.values():
        assert np.ptp(imread(path)[..., :3]) > 0.5
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(names)
    assert "27,406,217" in page and f"{summary.cells:,}" in page
    assert "fewer than 3 genes" in page
    rows = read_page(output / "report.html").rows
    first = rows.index(["tissue", "cells kept", "left out", "percent left out"]) + 1
    shown = {row[0]: [float(number) for number in row[1:]] for row in rows[first : first + 3]}
    for tissue, (kept, left_out, percent) in shown.items():
        assert kept == summary.groups["tissue"][tissue]
        assert percent == pytest.approx(100 * left_out / (kept + left_out), abs=0.1)
    assert sum(kept + left_out for kept, left_out, _ in shown.values()) == 410
    heavy = any(percent > 20 for *_, percent in shown.values())
    assert ("Warning: more than 20% of the cells" in page) == heavy
    genes = pd.read_parquet(output / "genes.parquet")
    assert genes["cells"].is_monotonic_decreasing
    found = genes.set_index("gene_id")["cells"].reindex(vocabulary().gene_ids)
    assert found.tolist() == summary.cells_per_gene.tolist()
    provenance = json.loads((output / "provenance.json").read_text())
    assert provenance["counts"]["cells"] == summary.cells
    with pytest.raises(InputError, match="nothing is overwritten"):
        write_corpus_report(corpus[0], output)


def test_a_report_is_made_anew_of_the_same_store_and_when_its_removal_was_cut_short(
    corpus, tmp_path, monkeypatch
):
    output = tmp_path / "report"
    write_corpus_report(corpus[0], output)
    whole = {path.name for path in output.rglob("*")}
    with monkeypatch.context() as there:
        there.setattr(corpus_report, "remove", dying_after(3))
        with pytest.raises(KeyboardInterrupt):
            write_corpus_report(corpus[0], output)
    assert {path.name for path in output.rglob("*")} < whole
    write_corpus_report(corpus[0], output)
    assert {path.name for path in output.rglob("*")} == whole
    assert sorted(os.listdir(tmp_path)) == ["index.html", "report"]


def dying_after(calls: int):
    """`remove`, which does so some times before the process is stopped."""
    left = iter(range(calls))

    def removing(path):
        if next(left, None) is None:
            raise KeyboardInterrupt
        remove(path)

    return removing


def test_a_column_that_is_not_there_is_named_with_near_ones(corpus, tmp_path):
    with pytest.raises(InputError, match=r'no obs column "tisue" \(did you mean "tissue"\?\)'):
        write_corpus_report(corpus[0], tmp_path / "report", ["tisue"])
    with pytest.raises(InputError, match="is no cell store"):
        write_corpus_report(tmp_path, tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [1, 25, 26, 60])
def test_bars_show_25_values_and_the_rest_together(values):
    counts = pd.Series({f"value {n}": 100 - n for n in range(values)})
    axes = corpus_figures.bar_figure(counts).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert sum(widths) == counts.sum()
    assert widths[: min(values, 25)] == counts.head(25).tolist()
    assert labels[25:] == ([f"{values - 25} others"] if values > 25 else [])


def test_the_length_figure_shows_every_cell_once(corpus):
    summary = summarise_corpus(corpus[0])
    axes = corpus_figures.length_figure(summary).axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert sum(heights) == summary.cells
    assert heights[-1] == summary.length_counts[LIMIT] > 0
    median = np.median(np.repeat(np.arange(LIMIT + 1), summary.length_counts))
    assert axes.lines[0].get_xdata()[0] == pytest.approx(median, abs=0.5)


def test_the_detection_figure_falls_from_all_found_genes(corpus):
    summary = summarise_corpus(corpus[0])
    line = corpus_figures.detection_figure(summary).axes[0].lines[0]
    for cells, genes in zip(*line.get_data(), strict=True):
        assert genes == (summary.cells_per_gene >= max(cells, 1)).sum()
