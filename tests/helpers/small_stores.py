"""Small files of counts, and stores made of them."""

import numpy as np
import pandas as pd

from geneformer_jax.cells.counts.options import DEFAULT_LIMITS, CountArguments, CountOptions
from geneformer_jax.cells.store.builder import StoreBuild
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions
from tests.helpers.count_files import example_cells


def cells(seed=0, name="c", **options):
    adata = example_cells(seed=seed, **options)
    adata.obs_names = [f"{name}{n}" for n in range(adata.n_obs)]
    return adata


def build(folder, paths, vocabulary, obs=(), shard=(0, 1), skip=False, finish=True, **options):
    """What the command does, without a process of its own; returns the store and its counts."""
    names = options.keys() & CountArguments.__annotations__.keys()
    reading = {name: options.pop(name) for name in names}
    counts = CountOptions(limits=options.pop("limits", DEFAULT_LIMITS), **reading)
    how = {name: options.pop(name) for name in ("prefix_cell_ids", "piece_values") & options.keys()}
    options = TokenizerOptions(max_length=options.pop("max_length", 2048), **options)
    run = StoreBuild(folder, vocabulary, options, counts, list(obs), **how)
    run.survey(paths, skip)
    while shard and not run.write(shard, skip):
        pass
    counts = run.finish({}, skip) if finish else {}
    return CellStore.open(folder) if finish else None, counts


def same_stores(one, other):
    assert one.cell_ids.tolist() == other.cell_ids.tolist()
    pd.testing.assert_frame_equal(one.obs, other.obs)
    for a, b in zip(one.read(range(len(one))), other.read(range(len(other))), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in other.shards]


def slow_tokens(adata, vocabulary):
    """Each cell's tokens, the obvious way (no repeated ids)."""
    tokens = vocabulary.tokens_of(adata.var["ensembl_id"])
    rows = []
    for counts, total in zip(adata.X.toarray(), adata.obs["n_counts"], strict=True):
        known = [c for c in np.flatnonzero(counts) if tokens[c] >= 0]
        medians = [vocabulary.medians[tokens[c] - vocabulary.first_gene_token] for c in known]
        value = {
            c: counts[c] * (1 / total) * 10_000 * (1 / m)
            for c, m in zip(known, medians, strict=True)
        }
        rows.append([int(tokens[c]) for c in sorted(known, key=lambda c: -value[c])])
    return rows


def write(adata, path):
    adata.write_h5ad(path)
    return path


def with_ids(adata, ids):
    copy = adata.copy()
    copy.var = pd.DataFrame(index=ids)
    return copy
