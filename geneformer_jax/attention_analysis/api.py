"""What the attention heads of a pretrained encoder look at, over many cells.

The paper (Nature 2023, Fig. 4 and Extended Data Fig. 9) finds that a fifth of the heads attend
transcription factors more than other genes, that heads of early layers are the most diverse, that
middle layers attend broadly and that the last layers attend the highest ranks. Its exact statistics
are not published with it; `statistics`, `comparisons` and `layers` describe what is computed here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Unpack

import anndata as ad
import jax
import numpy as np
import pandas as pd

from geneformer_jax.attention_analysis import layers, statistics
from geneformer_jax.attention_analysis.cell_groups import describe_skipped, group_cells
from geneformer_jax.attention_analysis.comparisons import compare_genes
from geneformer_jax.attention_analysis.extractor import AttentionExtractor, AttentionSums
from geneformer_jax.attention_analysis.gene_lists import (
    GeneComparison,
    GeneLists,
    compare_lists,
    known_genes,
    read_gene_lists,
)
from geneformer_jax.cells.counts.options import CountArguments
from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.arguments import require_text, require_whole
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import logger
from geneformer_jax.common.progress import Progress
from geneformer_jax.inference.arguments import check_model, check_runtime
from geneformer_jax.inference.cells import open_cells, select_cells
from geneformer_jax.inference.draw import ORIGINAL_SEED, check_draw
from geneformer_jax.inference.filters import Filters
from geneformer_jax.inference.random_control import MODEL, RANDOM, random_model
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime, profiled_runtime

ALL_CELLS = "all cells"
MIN_CELLS = 10
# Weights between more genes than these fill memory and no figure.
MAX_PAIRED = 200
_CELLS_AT_ONCE = 65_536


@dataclass(frozen=True, eq=False)
class AttentionQuery:
    """What is asked of the heads.

    Attributes:
      lists: gene lists to compare, name -> ids or symbols.
      groupby: obs column whose values are groups of cells to summarise apart, or None.
      pairs: genes, ids or symbols, whose weights between each other are extracted.
      control: whether to extract the same from random weights.
      min_cells: cells that a group must have to be summarised apart, and that must have a gene for
        it to be compared.
      seed: of the random weights, bootstrap and matching.
    """

    lists: Mapping[str, Sequence[str]]
    groupby: str | None = None
    pairs: Sequence[str] = ()
    control: bool = False
    min_cells: int = MIN_CELLS
    seed: int = 0


@dataclass(frozen=True, eq=False)
class HeadAttention:
    """What was found; every table is tidy, with layers and heads counted from 1.

    Attributes:
      heads: gene lists by head, see `comparisons.compare_genes`; with columns `model`, `list` and
        `against`.
      ranks: received attention by rank; with `model` and `group`.
      layers: diversity, breadth and weight on top ranks by layer; with `model`.
      thirds: differences between thirds of the layers; with `model`.
      statements: the paper's statements, and whether they hold.
      groups: genes attended beyond what rank explains, by group of cells.
      pairs: weights between chosen genes; with `model`.
      comparisons: the gene lists as they were found.
      sums: model -> its totals and the measures of each cell.
      group_names: of the totals' groups; () if not asked for.
      skipped_groups: name -> number of cells of groups too small to be summarised apart.
    """

    heads: pd.DataFrame
    ranks: pd.DataFrame
    layers: pd.DataFrame
    thirds: pd.DataFrame
    statements: pd.DataFrame
    groups: pd.DataFrame
    pairs: pd.DataFrame
    comparisons: list[GeneComparison]
    sums: Mapping[str, AttentionSums]
    group_names: tuple[str, ...]
    skipped_groups: Mapping[str, int]

    def __repr__(self) -> str:
        lists = ", ".join(dict.fromkeys(self.heads["list"]))
        return f"HeadAttention(gene lists {lists}; tables {', '.join(self.tables())})"

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns all tables by name."""
        names = [each.name for each in fields(self) if each.type is pd.DataFrame]
        return {name: getattr(self, name) for name in names}

    def gene_tables(self, ids: np.ndarray, symbols: np.ndarray) -> Iterator[pd.DataFrame]:
        """Yields the table of every gene, layer and head: of all cells, then of each group."""
        totals = self.sums[MODEL].totals
        overall = statistics.gene_means(statistics.of_all_groups(totals))
        yield statistics.gene_table(overall, ids, symbols, ALL_CELLS)
        for group, name in enumerate(self.group_names):
            means = statistics.gene_means(totals, group)
            yield statistics.gene_table(means, ids, symbols, name)


def attend_cells(
    model: PretrainedModel,
    cells: EncodedCells | ad.AnnData | Path | str,
    genes: GeneLists,
    *,
    groupby: str | None = None,
    pairs: Sequence[str] = (),
    control: bool = False,
    min_cells: int = MIN_CELLS,
    filters: Filters | None = None,
    max_cells: int | None = None,
    seed: int = ORIGINAL_SEED,
    runtime: Runtime | None = None,
    devices: list[jax.Device] | None = None,
    **reading: Unpack[CountArguments],
) -> HeadAttention:
    """Finds what the heads of a pretrained model attend to.

    Args:
      model: a pretrained encoder with its vocabulary.
      cells: as in `embed_cells`.
      genes: genes to compare with all others, such as transcription factors: lists by name, one
        list, or files (see `gene_lists.read_gene_lists`).
      groupby: obs column; its values are summarised apart too.
      pairs: genes whose attention to each other is extracted, at most 200.
      control: extract the same from random weights: what they show too was not learned.
      min_cells: cells that a group must have to be summarised apart (smaller ones are skipped and
        named), and that must have a gene for it to be compared; 2 or more.
      filters: obs column -> value or values of which a cell must have one; all must pass.
      max_cells: cells to draw at random; None takes all.
      seed: of that draw.
      runtime: how to compute, with an attention of `model.attention.dispatch.PROFILED`; by default
        float32, and what suits the device.
      devices: which share the work; all of this process by default.
      reading: of counts, which matrix and gene ids; arguments of `CountOptions`.

    Raises:
      InputError: a list matches no gene, every group has too few cells, the cells do not fit the
        model, or the attention implementation never holds its weights.
    """
    check_model(model)
    check_draw(max_cells, seed)
    check_runtime(runtime, devices)
    require_text("groupby", groupby, "an obs column")
    require_whole("min_cells", min_cells, 2)
    named = read_pairs(pairs) if isinstance(pairs, str) else tuple(map(str, pairs))
    query = AttentionQuery(read_gene_lists(genes), groupby, named, control, min_cells)
    chosen = select_cells(open_cells(cells, model, **reading), filters, max_cells, seed)
    extractors = prepare(model, chosen, query, runtime, devices=devices)
    sums = {}
    for name, extractor in extractors.items():
        with Progress(len(chosen.rows), f"attend: {name}", "cells") as progress:
            sums[name] = extractor.run(0, len(chosen.rows), progress)
    return tabulate(query, extractors[MODEL], sums)


def prepare(
    model: PretrainedModel,
    cells: EncodedCells,
    query: AttentionQuery,
    runtime: Runtime | None = None,
    *,
    devices: list[jax.Device] | None = None,
    tokens_per_device: int | None = None,
) -> dict[str, AttentionExtractor]:
    """Validates the query; returns an extractor of the model, and of its control if asked for."""
    longest = int(np.asarray(cells.lengths).max(initial=0))
    runtime = runtime or profiled_runtime(longest, "float32", "auto")[0]
    groups = group_cells(cells.obs, query.groupby, query.min_cells)
    if groups.skipped:
        logger.warning(describe_skipped(groups))
    chosen = known_genes(query.pairs, model.vocabulary) if query.pairs else ()
    if len(chosen) > MAX_PAIRED:
        raise InputError(f"`pairs` names {len(chosen)} genes; name at most {MAX_PAIRED}")
    # Which of the listed genes the cells have, before hours of work.
    compare_lists(query.lists, model.vocabulary, count_cells(cells), query.min_cells)
    models = {MODEL: model} | ({RANDOM: random_model(model, query.seed)} if query.control else {})
    return {
        name: AttentionExtractor(
            each,
            cells,
            groups,
            chosen,
            runtime,
            devices=devices,
            tokens_per_device=tokens_per_device,
        )
        for name, each in models.items()
    }


def tabulate(
    query: AttentionQuery, extractor: AttentionExtractor, sums: Mapping[str, AttentionSums]
) -> HeadAttention:
    """Computes the tables.

    Args:
      query: what was asked.
      extractor: of the model.
      sums: model -> over all cells.
    """
    vocabulary, names = extractor.cells.vocabulary, extractor.groups.names
    overall = {name: statistics.of_all_groups(each.totals) for name, each in sums.items()}
    means = {name: statistics.gene_means(each) for name, each in overall.items()}
    comparisons = compare_lists(query.lists, vocabulary, means[MODEL].cells, query.min_cells)
    ids, symbols = token_names(extractor)
    chosen = list(extractor.spec.chosen)

    def per_model(make) -> pd.DataFrame:
        tables = [make(name).assign(model=name) for name in sums]
        table = pd.concat(tables, ignore_index=True)
        return table[["model", *table.columns.drop("model")]]

    thirds = {name: layers.compare_thirds(each.cells, query.seed) for name, each in sums.items()}
    return HeadAttention(
        heads=per_model(lambda name: _compare(means[name], comparisons, query.seed)),
        ranks=per_model(lambda name: _ranks(overall[name], sums[name].totals, names)),
        layers=per_model(lambda name: layers.layer_table(sums[name].cells, query.seed)),
        thirds=per_model(lambda name: thirds[name]),
        statements=layers.verdicts(thirds),
        groups=_groups(sums[MODEL].totals, names, ids, symbols, query.min_cells),
        pairs=per_model(
            lambda name: statistics.pair_table(overall[name], ids[chosen], symbols[chosen])
        ),
        comparisons=comparisons,
        sums=sums,
        group_names=names,
        skipped_groups=extractor.groups.skipped,
    )


def token_names(extractor: AttentionExtractor) -> tuple[np.ndarray, np.ndarray]:
    """Returns (gene id, symbol) of each token, [V] each."""
    vocabulary = extractor.cells.vocabulary
    tokens = np.arange(vocabulary.size)
    ids = np.array([vocabulary.gene_id_of(int(token)) for token in tokens], object)
    return ids, np.asarray(vocabulary.names_of(tokens), object)


def read_pairs(genes: str) -> tuple[str, ...]:
    """Returns genes named one by one, separated by commas, or by a file."""
    if genes and Path(genes).is_file():
        return tuple(each for listed in read_gene_lists(genes).values() for each in listed)
    return tuple(name.strip() for name in genes.split(",") if name.strip())


def count_cells(cells: EncodedCells) -> np.ndarray:
    """Returns the number of cells that have each token, [V]; reads some cells at a time."""
    counts = np.zeros(cells.vocabulary.size, np.int64)
    for start in range(0, len(cells.lengths), _CELLS_AT_ONCE):
        rows = np.arange(start, min(start + _CELLS_AT_ONCE, len(cells.lengths)))
        tokens = np.concatenate(cells.read(rows)).astype(np.int64)
        counts += np.bincount(tokens, minlength=len(counts))
    return counts


def _compare(means, comparisons: Sequence[GeneComparison], seed: int) -> pd.DataFrame:
    tables = []
    for each in comparisons:
        table = compare_genes(means, each.first, each.second, seed)
        table.insert(0, "against", each.against)
        table.insert(0, "list", each.name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _ranks(overall, totals, names: Sequence[str]) -> pd.DataFrame:
    whole = statistics.rank_table(overall, (ALL_CELLS,))
    by_group = [statistics.rank_table(totals, names)] if names else []
    return pd.concat([whole, *by_group], ignore_index=True)


def _groups(totals, names, ids, symbols, min_cells: int) -> pd.DataFrame:
    # Without groups, the only totals are those of all cells.
    tables = [
        statistics.group_table(statistics.gene_means(totals, group), ids, symbols, name, min_cells)
        for group, name in enumerate(names or (ALL_CELLS,))
    ]
    return pd.concat(tables, ignore_index=True)
