"""Eight fake devices for every test, and where the reference data lie."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import pytest

PROJECT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("GENEFORMER_JAX_DATA", PROJECT.parent / "shared" / "data"))


def _reference_folder(name: str) -> Path:
    folder = DATA if name == "data" else DATA.parent / name
    if folder.is_dir():
        return folder
    reason = f"no reference data at {folder}: name the data folder in GENEFORMER_JAX_DATA"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real cells, dictionaries and gene lists."""
    return _reference_folder("data")


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The original's own outputs."""
    return _reference_folder("reference")
