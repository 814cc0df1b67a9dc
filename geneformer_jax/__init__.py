"""Geneformer in JAX: rank value encodings of single cells, pretrained by masked gene prediction.

    import geneformer_jax as gf

    model = gf.load_model("checkpoint")
    cells = gf.tokenize_cells(adata, model.vocabulary)
    embedded = gf.embed_cells(model, adata)       # AnnData with .obsm["X_geneformer"]

As scanpy writes its functions, `gf.pp`, `gf.tl` and `gf.pl` work on an AnnData in place:

    gf.tl.embed(adata, model)                     # adata.obsm["X_geneformer"]

Names are imported when first used, so that `import geneformer_jax` is quick and starts no JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geneformer_jax import cluster
    from geneformer_jax.attention_analysis.api import attend_cells
    from geneformer_jax.cells.store.cell_store import CellStore
    from geneformer_jax.cells.tokenization.tokenizer import TokenizedCells, tokenize_cells
    from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
    from geneformer_jax.common.errors import InputError
    from geneformer_jax.embedding.api import embed_cells
    from geneformer_jax.finetuning.prediction.api import predict_cells, predict_genes
    from geneformer_jax.finetuning.run import finetune_cells
    from geneformer_jax.interop.hub.upload import push_to_hub
    from geneformer_jax.interop.load import load_model
    from geneformer_jax.label_transfer.api import transfer_labels
    from geneformer_jax.model.pretrained import PretrainedModel
    from geneformer_jax.model.runtime import Runtime
    from geneformer_jax.perturbation.api import perturb_cells
    from geneformer_jax.perturbation.cell_states import CellStates
    from geneformer_jax.perturbation.statistics.report import perturbation_statistics
    from geneformer_jax.perturbation.validation.api import validate_perturbations
    from geneformer_jax.perturbation.validation.hits.api import validate_hits
    from geneformer_jax.scverse import pl, pp, tl
    from geneformer_jax.training.api import pretrain_model
    from geneformer_jax.training.config import pretrain_config

__version__ = "0.1.0"
__all__ = [
    "CellStates",
    "CellStore",
    "GeneVocabulary",
    "InputError",
    "PretrainedModel",
    "Runtime",
    "TokenizedCells",
    "__version__",
    "attend_cells",
    "cluster",
    "embed_cells",
    "finetune_cells",
    "load_model",
    "perturb_cells",
    "perturbation_statistics",
    "pl",
    "pp",
    "predict_cells",
    "predict_genes",
    "pretrain_config",
    "pretrain_model",
    "push_to_hub",
    "tl",
    "tokenize_cells",
    "transfer_labels",
    "validate_hits",
    "validate_perturbations",
]
_HOME = {
    "CellStates": "perturbation.cell_states",
    "CellStore": "cells.store.cell_store",
    "GeneVocabulary": "cells.tokenization.vocabulary",
    "InputError": "common.errors",
    "PretrainedModel": "model.pretrained",
    "Runtime": "model.runtime",
    "TokenizedCells": "cells.tokenization.tokenizer",
    "attend_cells": "attention_analysis.api",
    "embed_cells": "embedding.api",
    "finetune_cells": "finetuning.run",
    "load_model": "interop.load",
    "perturb_cells": "perturbation.api",
    "perturbation_statistics": "perturbation.statistics.report",
    "predict_cells": "finetuning.prediction.api",
    "predict_genes": "finetuning.prediction.api",
    "pretrain_config": "training.config",
    "pretrain_model": "training.api",
    "push_to_hub": "interop.hub.upload",
    "tokenize_cells": "cells.tokenization.tokenizer",
    "transfer_labels": "label_transfer.api",
    "validate_hits": "perturbation.validation.hits.api",
    "validate_perturbations": "perturbation.validation.api",
}


# Modules, which hold their functions.
_MODULES = {
    "cluster": f"{__name__}.cluster",
    "pl": f"{__name__}.scverse.pl",
    "pp": f"{__name__}.scverse.pp",
    "tl": f"{__name__}.scverse.tl",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOME[name]}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
