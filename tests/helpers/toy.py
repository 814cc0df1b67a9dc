"""Small made-up cells with structure in them, and a store of them."""

from pathlib import Path

import anndata as ad
import jax
import numpy as np
import pandas as pd
from scipy import sparse

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.store.builder import StoreBuild
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions
from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS, GeneVocabulary
from geneformer_jax.model.config import EncoderConfig
from geneformer_jax.model.encoder import init_params
from geneformer_jax.model.heads import HeadConfig, init_head
from geneformer_jax.model.pretrained import PretrainedModel

GENES = 150


def toy_cells(cells: int = 240, seed: int = 0) -> ad.AnnData:
    """Raw counts of two cell types that express different halves of the genes."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, cells)
    base = rng.lognormal(-0.5, 1.0, GENES)
    program = np.where(np.arange(GENES) < GENES // 2, 4.0, 0.3)
    rates = base * np.where(kind[:, None] == 0, program, program[::-1])
    counts = rng.poisson(rates * rng.lognormal(-0.5, 0.8, (cells, 1)))
    counts[:, 0] += 1  # every cell has a gene
    return ad.AnnData(
        sparse.csr_matrix(counts.astype(np.int32)),
        obs=pd.DataFrame({"kind": np.where(kind, "b", "a")}, index=[f"c{i}" for i in range(cells)]),
        var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(GENES)]),
    )


def reserved_columns(ids: pd.Index) -> pd.DataFrame:
    """Per-cell columns under names that our files, tables and results use for themselves."""
    texts = ("cell_id", "obs:cell_id", "cell", "input_ids", "index", "predicted_label", "symbol")
    numbers = ("tokens", "obs:tokens", "length", "lengths", "n_genes", "rank", "label")
    columns = {name: [f"{name} {i % 3}" for i in range(len(ids))] for name in texts}
    columns |= {name: np.arange(len(ids)) % (3 + n) for n, name in enumerate(numbers)}
    return pd.DataFrame(columns, index=ids)


def toy_model(
    seed: int = 0,
    special_tokens: tuple[str, ...] = ("<pad>", "<mask>"),
    head: HeadConfig | None = None,
    genes: int = GENES,
    **changes,
) -> PretrainedModel:
    """A model of the toy genes with random weights; changes are to EncoderConfig."""
    vocabulary = toy_vocabulary(special_tokens, genes)
    shape = {"layers": 2, "width": 16, "heads": 2, "feed_forward": 32, "positions": 256}
    config = EncoderConfig(vocabulary_size=vocabulary.size, **{**shape, **changes})
    params = init_params(config, jax.random.key(seed))
    if head is not None:
        del params["masked_gene_head"]
        params[head.kind] = init_head(config, head, jax.random.key(seed + 1))
    return PretrainedModel(config, params, vocabulary, source="toy", step=0, head=head)


def toy_vocabulary(
    special_tokens: tuple[str, ...] = V1_SPECIAL_TOKENS, genes: int = GENES
) -> GeneVocabulary:
    """A vocabulary of the toy genes, or of another number of them."""
    ids = np.array([f"ENSG{i:011d}" for i in range(genes)])
    medians = np.random.default_rng(1).lognormal(1.0, 0.5, genes)
    return GeneVocabulary(ids, np.full(genes, ""), medians, special_tokens)


def make_store(
    folder: Path, adata: ad.AnnData, vocabulary: GeneVocabulary, obs: tuple[str, ...] = ()
) -> CellStore:
    """Tokenises `adata` into a store at `folder`."""
    source = folder.with_name(folder.name + ".h5ad")
    adata.write_h5ad(source)
    build = StoreBuild(folder, vocabulary, TokenizerOptions(max_length=2_048), CountOptions(), obs)
    build.survey([source])
    build.write()
    build.finish({})
    return CellStore.open(folder)
