"""What computes is imported where only JAX and the usual scientific libraries are installed."""

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
# Read, write or configure; an image made for computing has none of them.
ABSENT = (
    "anndata",
    "array_record",
    "grain",
    "isal",
    "ml_collections",
    "tensorflow_datasets",
    "zarr",
)
COMPUTING = (
    "attention_analysis.extractor",
    "embedding.embedder",
    "model.encoder",
    "model.pretrained",
    "perturbation.engine.perturber",
    "perturbation.engine.screening.screener",
    "perturbation.engine.screening.settling",
    "perturbation.prepare",
    "training.optimizer",
    "training.run",
    "training.state",
)
SCRIPT = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"no module named {{name}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {COMPUTING}:
    importlib.import_module("geneformer_jax." + name)
"""


def test_what_computes_needs_no_library_of_files():
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=PROJECT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
