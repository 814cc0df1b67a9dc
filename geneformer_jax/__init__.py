"""Geneformer in JAX: rank value encodings of single cells, pretrained by masked gene prediction.

    import geneformer_jax as gf

    model = gf.load_model("checkpoint")
    cells = gf.tokenize_cells(adata, model.vocabulary)
    embedded = gf.embed_cells(model, adata)       # AnnData with .obsm["X_geneformer"]

Names are imported when first used, so that `import geneformer_jax` is quick and starts no JAX.
"""

import importlib

__version__ = "0.1.0"
_HOME = {
    "CellStates": "geneformer_jax.perturbation.cell_states",
    "InputError": "geneformer_jax.common.errors",
    "attend_cells": "geneformer_jax.attention_analysis.api",
    "embed_cells": "geneformer_jax.embedding.api",
    "finetune_cells": "geneformer_jax.finetuning.run",
    "load_model": "geneformer_jax.interop.load",
    "perturb_cells": "geneformer_jax.perturbation.api",
    "perturbation_statistics": "geneformer_jax.perturbation.statistics.report",
    "predict_cells": "geneformer_jax.finetuning.predict",
    "predict_genes": "geneformer_jax.finetuning.predict",
    "pretrain_config": "geneformer_jax.training.config",
    "pretrain_model": "geneformer_jax.training.api",
    "tokenize_cells": "geneformer_jax.cells.tokenization.tokenizer",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
