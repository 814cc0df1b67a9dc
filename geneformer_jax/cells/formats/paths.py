"""Which paths hold counts, and how a list of files, folders and globs is expanded."""

import glob
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from geneformer_jax.cells.formats.mtx_layouts import is_matrix, is_matrix_folder
from geneformer_jax.cells.formats.zarr_stores.remote import names_in
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.files import SOMA_PREFIX, local_path, url_of

HDF5_SUFFIXES = (".h5ad", ".h5mu", ".loom", ".h5")
ZARR_MARKS = (".zgroup", "zarr.json")
# Of one path in a list of several.
_MOST_COMMAS = 5
# How many folders are looked into, so many levels down, to say where counts are.
_FOLDERS, _LEVELS, _LISTED = 500, 3, 5
# Of a{b,c}d, with such braces in them too.
_BRACES = re.compile(r"\{((?:[^{}]|\{[^{}]*\})*)\}")
_TILEDB_GROUP = "__tiledb_group.tdb"
_REMOTE_SOMA = re.compile(r"soma:/", re.IGNORECASE)
_ZARR_ZIP = ".zarr.zip"
# What annbatch calls the parts of a collection.
DATASET = re.compile(r"dataset_(\d+)")
KINDS = (
    "counts are .h5ad, .h5mu, .loom and .h5 (10x) files, zarr stores of AnnData, MuData or "
    "SpatialData (folders or .zarr.zip), collections of annbatch, TileDB-SOMA experiments, and "
    "folders with a matrix.mtx as Cell Ranger, STARsolo, kb, alevin-fry and Parse write them"
)


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, by its name."""
    return path.suffix.lower() in HDF5_SUFFIXES and path.is_file()


def is_zarr(path: Path) -> bool:
    """Whether a folder, here or behind a URL, is a zarr store of format 2 or 3.

    Raises:
      InputError: it is behind a URL that cannot be reached.
    """
    if url_of(path):
        return not is_soma(path) and not set(ZARR_MARKS).isdisjoint(names_in(path))
    return path.is_dir() and any((path / mark).is_file() for mark in ZARR_MARKS)


def is_soma(path: Path) -> bool:
    """Whether a path is a group of TileDB, which experiments and collections of them are."""
    return _REMOTE_SOMA.match(str(path)) is not None or (path / _TILEDB_GROUP).is_file()


def is_there(path: Path) -> bool:
    """Whether something lies at a path; of a TileDB-SOMA behind a URL only reading it says so."""
    return is_soma(path) or (is_zarr(path) if url_of(path) else path.exists())


def names_below(folder: Path) -> list[str]:
    """Returns the sorted names of what lies in a folder, here or behind a URL."""
    if url_of(folder):
        return names_in(folder)
    return sorted(each.name for each in folder.iterdir())


def as_path(given: Path | str) -> Path:
    """Returns a path with the home folder for "~", without "file://" and local "soma://" in front.

    Raises:
      InputError: there is no TileDB-SOMA behind "soma://", or no zarr store behind another URL.
    """
    text, path = str(given), local_path(given)
    if url_of(path):
        _require_zarr_or_soma(path)
    elif text.startswith(SOMA_PREFIX) and not glob.has_magic(text) and not is_soma(path):
        what = "is no TileDB-SOMA" if path.exists() else "does not exist"
        raise InputError(
            f"{path} {what}; give the folder of an experiment, or of a Census, behind {SOMA_PREFIX}"
        )
    return path


def _require_zarr_or_soma(path: Path) -> None:
    """Raises InputError for other counts behind a URL, without a look where the name says it."""
    url = url_of(path)
    # Of a file nobody is asked.
    is_file = path.suffix.lower() in (*HDF5_SUFFIXES, ".gz", ".zip")
    if is_file or not (is_soma(path) or is_zarr(path)):
        raise InputError(
            f"{url} is no zarr store: from afar only those are read, and TileDB-SOMA as "
            f"{SOMA_PREFIX}{url}; copy other counts here, or write them as zarr"
        )


def is_counts(path: Path) -> bool:
    """Whether one path is a source of its own: a count file or a folder that is a store."""
    if is_soma(path):
        return True
    if is_zarr(path):
        return not datasets_of(path)
    if path.is_dir():
        return is_matrix_folder(path)
    return is_hdf5(path) or is_matrix(path) or path.name.lower().endswith(_ZARR_ZIP)


def datasets_of(collection: Path) -> list[Path]:
    """Returns the stores that a collection of annbatch is made of, by number; of others none.

    Raises:
      InputError: one is missing.
    """
    if not is_zarr(collection) or "obs" in (names := names_below(collection)):
        return []
    numbered = {name: int(found[1]) for name in names if (found := DATASET.fullmatch(name))}
    by_number = {n: collection / name for name, n in numbered.items() if is_zarr(collection / name)}
    missing = set(range(len(by_number))) - by_number.keys()
    if missing:
        raise InputError(
            f"{collection} has a dataset_{max(by_number)}, but no dataset_{min(missing)}: copy it "
            "again, or name those that you mean, separated by commas"
        )
    return [path for _, path in sorted(by_number.items())]


def _sources(path: Path) -> list[Path]:
    """The sources that one path stands for, itself or the stores of a collection."""
    return [path] if is_counts(path) else datasets_of(path)


def expand_paths(paths: str) -> list[Path]:
    """Returns the count sources that a comma-separated list of files, folders and globs names.

    A path that exists as given is one path, whatever commas are in it; "~" is the home folder, and
    {a,b} stands for either, as in shells. The parts stay in their order; the matches of a folder or
    glob are sorted by name. A folder that is not itself a store is searched, itself only (a glob
    with ** reaches further down). The stores of a collection of annbatch are sources of their own,
    sorted by number. A source named twice is returned once.

    Raises:
      InputError: a part does not exist, or holds no counts.
    """
    parts = list(_parts(paths))
    if not parts:
        raise InputError(f"no path to counts is given; {KINDS}")
    found = [path for part in parts for path in _expand(part)]
    by_place = {path.resolve(): path for path in reversed(found)}
    return sorted(by_place.values(), key=found.index)


def _parts(paths: str) -> Iterator[str]:
    """What stands between commas; several pieces are one part if they name a path together."""
    pieces = _pieces(paths)
    while pieces:
        lengths = [len(pieces), *range(1, min(len(pieces), _MOST_COMMAS + 2))]
        joined = {length: ",".join(pieces[:length]).strip() for length in lengths}
        there = (n for n, part in joined.items() if part and local_path(part).exists())
        length = next(there, 1)
        if joined[length]:
            yield from _alternatives(joined[length])
        pieces = pieces[length:]


def _pieces(paths: str) -> list[str]:
    """Splits at commas, but for those in braces."""
    pieces, depth = [""], 0
    for letter in paths:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces if depth == 0 else paths.split(",")


def _alternatives(part: str) -> Iterator[str]:
    """What a part with {a,b} stands for; one that is there as it is written is itself."""
    braces = _BRACES.search(part)
    pieces = _pieces(braces[1]) if braces else []
    if len(pieces) < 2 or local_path(part).exists():
        yield part
        return
    for each in pieces:
        yield from _alternatives(part[: braces.start()] + each.strip() + part[braces.end() :])


def _expand(part: str) -> list[Path]:
    path = as_path(part)
    part = str(path)
    if path.is_file():
        return [path]
    if url_of(path) or path.is_dir():
        return _sources(path) or _search(path) or _nothing(f"folder {part} holds no counts", path)
    if not glob.has_magic(part):
        raise InputError(f"{part} does not exist{_near(path)}; check the path")
    matches = [Path(match) for match in sorted(glob.glob(part, recursive=True))]
    found = [source for each in matches for source in _sources(_outermost_store(each))]
    searched = [each for each in matches if each.is_dir() and not is_counts(each)]
    # "data/*" means the folders in data too, but a glob that names files names only those.
    found += [] if found else [each for folder in searched for each in _search(folder)]
    return found or _nothing(f"{part} matches {len(matches)} paths, but no counts", None)


def _search(folder: Path) -> list[Path]:
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [source for path in names for source in _sources(path)]


def _outermost_store(path: Path) -> Path:
    """The store a path lies in: groups of a zarr store look like stores, too."""
    return next((parent for parent in reversed(path.parents) if is_counts(parent)), path)


def _nothing(what: str, folder: Path | None) -> list[Path]:
    if folder is None:
        raise InputError(f"{what}; {KINDS}")
    below = [str(path.relative_to(folder)) for path in islice(_below(folder), _LISTED)]
    if below:
        raise InputError(f"{what} itself; below it are {', '.join(below)}: give the one you mean")
    holds = sorted(path.name for path in folder.iterdir())[:_LISTED]
    raise InputError(f"{what} (it holds {', '.join(holds) or 'nothing'}); {KINDS}")


def _below(folder: Path) -> Iterator[Path]:
    """Count sources in folders below, those of the upper levels first."""
    level = [folder]
    for _ in range(_LEVELS):
        folders = [path for each in level[:_FOLDERS] for path in sorted(each.iterdir())]
        level = [path for path in folders if path.is_dir() and not is_counts(path)]
        yield from (path for path in folders if path.parent != folder and is_counts(path))


def _near(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return ""
    return did_you_mean(path.name, (each.name for each in folder.iterdir()))
