"""Raw counts from files, a bounded number of cells at a time."""

import contextlib
import threading
from pathlib import Path

import h5py

from geneformer_jax.cells.counts import hdf5_probe
from geneformer_jax.cells.counts.file_errors import explain_damage
from geneformer_jax.cells.counts.options import (
    DEFAULT_LIMITS,
    DEFAULT_OPTIONS,
    CountOptions,
    ReadLimits,
)
from geneformer_jax.cells.counts.source import CountBatch, CountSource, MatrixSource
from geneformer_jax.cells.formats.anndata_source import AnnDataFileSource, AnnDataSource
from geneformer_jax.cells.formats.containers import is_zip, zipped_root
from geneformer_jax.cells.formats.loom_source import LoomSource
from geneformer_jax.cells.formats.mtx_layouts import is_matrix, matrix_files
from geneformer_jax.cells.formats.mtx_source import MtxSource
from geneformer_jax.cells.formats.paths import (
    KINDS,
    as_path,
    datasets_of,
    expand_paths,
    is_hdf5,
    is_soma,
    is_there,
    is_zarr,
)
from geneformer_jax.cells.formats.soma.source import SomaSource, soma_obs_columns
from geneformer_jax.cells.formats.tenx_source import TenxH5Source
from geneformer_jax.cells.links import require_own_content
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import url_of

__all__ = [
    "AnnDataSource",
    "CountBatch",
    "CountFiles",
    "CountSource",
    "expand_paths",
    "look_ahead",
    "obs_columns_of",
    "open_counts",
]


def open_counts(path: Path | str, options: CountOptions = DEFAULT_OPTIONS) -> CountSource:
    """Opens a file or folder of raw counts; reads its ids and totals, not its matrix.

    Args:
      path: an .h5ad, .h5mu, .loom or 10x .h5 file, a zarr store (folder, URL or zipped) of
        AnnData, MuData or SpatialData, a TileDB-SOMA experiment ("soma://" may stand in front), or
        a folder with Matrix Market files.
      options: which matrix and gene ids.

    Raises:
      InputError: nothing is there, or it cannot be read as counts.
    """
    path = as_path(path)
    if not is_there(path):
        raise InputError(f"{path} does not exist; check the path")
    if datasets := datasets_of(path):
        raise InputError(
            f"{path} is a collection of {len(datasets)} data sets, but one source of counts is "
            f"needed: name one, as {datasets[0]}, or tokenize the collection and name the store"
        )
    if is_hdf5(path) and not options.limits.known_sound:
        # The one call of the probe: what has been opened is safe to read.
        _require_survivable(path, options.limits)
    _require_own_content(path, options.limits)
    return _source_type(path)(path, options)


def obs_columns_of(path: Path) -> list[str]:
    """Names of the per-cell columns of counts; of a large experiment no cell is read for that.

    Raises:
      InputError: as from `open_counts`.
    """
    return soma_obs_columns(path) if is_soma(path) else open_counts(path).obs_columns()


class CountFiles:
    """Opens files and folders of counts, again and again, all with the same options.

    Which matrix of a file holds the counts is looked for once. The file opened last is kept, since
    a run often has but one.
    """

    def __init__(self, options: CountOptions):
        """Takes the options of all files."""
        self._options = options
        self._settled: dict[Path, CountOptions] = {}
        self._last: tuple[Path, CountSource] | None = None

    def open(self, path: Path) -> CountSource:
        """Opens one.

        Raises:
          InputError: as from `open_counts`.
        """
        if self._last is None or self._last[0] != path:
            self._last = path, open_counts(path, self._settled.get(path, self._options))
            self._settled[path] = self._last[1].settled
        return self._last[1]


def look_ahead(path: Path) -> None:
    """Starts the probe of a file that `open_counts` will wait for, while other things are done."""
    if is_hdf5(path):
        threading.Thread(target=_probe, args=(path.resolve(),), daemon=True).start()


def _probe(path: Path) -> None:
    # A file that is gone meanwhile is reported where it is opened; and a command that had nothing
    # to read may end meanwhile, which closes what the probe answers by.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        hdf5_probe.survives(path, DEFAULT_LIMITS.probe_seconds)


def _require_survivable(path: Path, limits: ReadLimits) -> None:
    if not hdf5_probe.survives(path, limits.probe_seconds):
        raise InputError(
            f"{path} cannot be read: the HDF5 library crashes on it, never ends or asks for absurd "
            "memory; it is damaged: copy or write it again"
        )


def _require_own_content(path: Path, limits: ReadLimits) -> None:
    # Pipelines link matrices into folders, of which only files of known names are read.
    is_store = not url_of(path) and (is_zarr(path) or is_soma(path))
    if not limits.known_sound and (is_hdf5(path) or is_store):
        with explain_damage(path, "HDF5" if is_hdf5(path) else "a store"):
            require_own_content(path)


def _source_type(path: Path) -> type[MatrixSource]:
    if is_soma(path):
        return SomaSource
    if is_zarr(path):
        return AnnDataFileSource
    with explain_damage(path, "zipped zarr"):
        if is_zip(path) and zipped_root(path) is not None:
            return AnnDataFileSource
    if is_matrix(path) or matrix_files(path):
        return MtxSource
    if not is_hdf5(path):
        raise InputError(f"{path} is no count file or store; {KINDS}")
    suffix = path.suffix.lower()
    if suffix != ".h5":
        return LoomSource if suffix == ".loom" else AnnDataFileSource
    with explain_damage(path, "10x h5"), h5py.File(path, "r") as root:
        return AnnDataFileSource if "obs" in root or "mod" in root else TenxH5Source
