"""What the tutorials begin with: 700 real blood cells, and the model of the package, demo-blood."""

import sys
from pathlib import Path

import anndata as ad

import geneformer_jax as gf

_DOCS = Path(__file__).resolve().parents[1]
COUNTS = _DOCS / "_build" / "small_model" / "counts.h5ad"
LABEL = "bulk_labels"


def load() -> tuple[ad.AnnData, gf.PretrainedModel]:
    """Returns the cells, with raw counts and obs column `bulk_labels`, and the model.

    Genes go by their Ensembl ids, as the model knows them; the names that scanpy has for them are
    in `.var["gene_symbol"]`.
    """
    model = gf.load_model("demo-blood")
    if not COUNTS.exists():
        sys.path.append(str(_DOCS.parent / "launch"))
        import quickstart

        cells = quickstart.demo_cells()
        ids = dict(zip(model.vocabulary.symbols, model.vocabulary.gene_ids, strict=True))
        cells.var["gene_symbol"] = cells.var_names
        cells.var_names = [ids.get(name, name) for name in cells.var_names]
        COUNTS.parent.mkdir(parents=True, exist_ok=True)
        cells.write_h5ad(COUNTS)
    return ad.read_h5ad(COUNTS), model
