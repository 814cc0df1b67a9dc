"""Which paths hold counts, and how a list of files, folders and globs is expanded."""

import glob
from pathlib import Path

from geneformer_jax.common.errors import InputError, did_you_mean

HDF5_SUFFIXES = (".h5ad", ".loom", ".h5")
_ZARR_MARKS = (".zgroup", "zarr.json")
_MTX_ENDINGS = ("matrix.mtx", "matrix.mtx.gz")
KINDS = "counts are .h5ad, .loom, .h5 (10x), zarr folders and 10x matrix.mtx folders"


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store of format 2 or 3."""
    return path.is_dir() and any((path / mark).is_file() for mark in _ZARR_MARKS)


def mtx_files(folder: Path) -> list[Path]:
    """The files matrix.mtx or matrix.mtx.gz in a folder, prefixed ones (as in GEO) included."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if is_mtx(file))


def is_mtx(path: Path) -> bool:
    """Whether a file is the matrix of a 10x mtx folder, by its name."""
    return path.name.endswith(_MTX_ENDINGS) and not path.name.startswith(".") and path.is_file()


def is_counts(path: Path) -> bool:
    """Whether one path is a source of its own: a count file or a folder that is a store."""
    if path.is_dir():
        return is_zarr(path) or any((path / name).is_file() for name in _MTX_ENDINGS)
    return path.suffix in HDF5_SUFFIXES or is_mtx(path)


def expand_paths(paths: str) -> list[Path]:
    """Returns the count sources that a comma-separated list of files, folders and globs names.

    The parts stay in their order; the matches of a folder or glob are sorted by name. A folder
    that is not itself a store is searched, itself only (a glob with ** reaches further down). A
    source named twice is returned once.

    Raises:
      InputError: a part does not exist, or holds no counts.
    """
    parts = [part.strip() for part in paths.split(",") if part.strip()]
    if not parts:
        raise InputError(f"no path to counts is given; {KINDS}")
    found = [path for part in parts for path in _expand(part)]
    by_place = {path.resolve(): path for path in reversed(found)}
    return sorted(by_place.values(), key=found.index)


def _expand(part: str) -> list[Path]:
    path = Path(part)
    if path.is_file() or (path.is_dir() and is_counts(path)):
        return [path]
    if path.is_dir():
        return _search(path) or _nothing(f"folder {part} holds no counts", path)
    if not glob.has_magic(part):
        raise InputError(f"{part} does not exist{_near(path)}; check the path")
    matches = [Path(match) for match in sorted(glob.glob(part, recursive=True))]
    found = [_outermost_store(each) for each in matches if is_counts(each)]
    searched = [each for each in matches if each.is_dir() and not is_counts(each)]
    # "data/*" means the folders in data too, but a glob that names files names only those.
    found += [] if found else [each for folder in searched for each in _search(folder)]
    return found or _nothing(f"{part} matches {len(matches)} paths, but no counts", None)


def _search(folder: Path) -> list[Path]:
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in names if is_counts(path)]


def _outermost_store(path: Path) -> Path:
    """The store a path lies in: groups of a zarr store look like stores, too."""
    return next((parent for parent in reversed(path.parents) if is_counts(parent)), path)


def _nothing(what: str, folder: Path | None) -> list[Path]:
    holds = sorted(path.name for path in folder.iterdir())[:5] if folder else []
    listed = f" (it holds {', '.join(holds)})" if holds else ""
    raise InputError(f"{what}{listed}; {KINDS}")


def _near(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return ""
    return did_you_mean(path.name, (each.name for each in folder.iterdir()))
