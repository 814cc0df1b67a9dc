"""Imports what commands import, once for all processes that are forked from here.

JAX begins its threads with its first computation, so none may be made here.
"""

import importlib
import pkgutil

import geneformer_jax

_NOT_NEEDED = ("cluster", "explorer", "hub", "scverse", "tracking", "dry_run", "soma")
_LATE = ("altair", "sklearn.neighbors", "sklearn.svm", "sklearn.ensemble", "matplotlib.pyplot",
         "tensorflow_datasets")  # fmt: skip


def _import_all() -> None:
    for module in pkgutil.walk_packages(geneformer_jax.__path__, "geneformer_jax."):
        parts = module.name.split(".")
        # A command defines its flags each time that it is run.
        if len(parts) > 2 and not set(parts) & set(_NOT_NEEDED):
            importlib.import_module(module.name)
    for name in _LATE:
        importlib.import_module(name)


_import_all()
