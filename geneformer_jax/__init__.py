"""Geneformer in JAX: rank value encodings of single cells, pretrained by masked gene prediction.

    import geneformer_jax as gf

    model = gf.load_model("checkpoint")
    cells = gf.tokenize_cells(adata, model.vocabulary)
    embedded = gf.embed_cells(model, adata)       # AnnData with .obsm["X_geneformer"]

Names are imported when first used, so that `import geneformer_jax` is quick and starts no JAX.
"""

import importlib
import importlib.metadata

_HOME = {
    "InputError": "geneformer_jax.common.errors",
    "embed_cells": "geneformer_jax.analysis.embedding",
    "load_model": "geneformer_jax.model.pretrained",
    "tokenize_cells": "geneformer_jax.cells.tokenization",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = importlib.metadata.version("geneformer_jax")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
