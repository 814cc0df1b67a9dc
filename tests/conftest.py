"""Eight fake devices for every test, and where the reference data lie."""

import logging
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nothing of this project is imported before JAX knows of its eight devices.
from tests.helpers.xla import QUICK_COMPILING

# Commands that run in the process of the tests are not to keep what they freed: see common/threads.
os.environ.setdefault("GLIBC_TUNABLES", "")
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        QUICK_COMPILING,
    )
)

import pytest

# Runs that are killed and begun again, on other meshes or in other processes, compile the same
# programs: the workers of pytest and the commands that they start share what one of them compiled.
_MADE_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _MADE_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="geneformer_jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

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


@pytest.fixture(scope="session")
def needs_ray() -> None:
    """Skips tests where Ray is missing; fails in CI, as the test extra has it."""
    if find_spec("ray"):
        return
    reason = 'no Ray: install the ray extra, pip install "geneformer_jax[ray]"'
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def quiet_log():
    """Leaves the package's logger as it was: a command that a test runs makes it print."""
    logger = logging.getLogger("geneformer_jax")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory):
    """A cell store of 240 made-up cells of two types."""
    # Imported here: JAX must not start before its eight devices are asked for above.
    from tests.helpers.toy import make_store, toy_cells, toy_vocabulary

    folder = tmp_path_factory.mktemp("toy") / "store"
    return make_store(folder, toy_cells(), toy_vocabulary(), obs=("kind",))


@pytest.fixture(scope="session")
def torch():
    """PyTorch, for comparisons; a test that asks for it carries the mark `parity`."""
    try:
        import torch
    except ModuleNotFoundError:
        pytest.skip('no PyTorch: install the parity extra, pip install "geneformer_jax[parity]"')
    return torch


def pytest_unconfigure():
    """Removes the compiled programs; only the process that made their folder does."""
    if _MADE_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """In CI, a comparison that was skipped for lack of its reference counts as failed."""
    report = yield
    compares = any(item.get_closest_marker(name) for name in ("parity", "reference_data"))
    expected = hasattr(report, "wasxfail")
    if compares and report.skipped and not expected and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where its reference must be there: {report.longrepr}"
    return report
