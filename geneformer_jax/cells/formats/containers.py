"""Containers of AnnData: HDF5 files, zarr stores (zipped or not), and what holds several."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import h5py

from geneformer_jax.cells.formats.paths import DATASET, ZARR_MARKS, is_hdf5, is_zarr, names_below
from geneformer_jax.cells.formats.zarr_stores.remote import explain_access, store_of
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import url_of

if TYPE_CHECKING:
    import zarr

    Group = h5py.Group | zarr.Group

_ZIP = ".zip"
_METADATA = (*ZARR_MARKS, ".zarray", ".zattrs")
_MOST_METADATA = 64 << 20
# Counts are packed to a tenth; what is all of one value, to a thousandth.
_MOST_PACKED = 500
# What the modality with the counts of genes is called; compared in lower case.
_RNA_NAMES = ("rna", "gex", "gene expression", "mrna", "transcriptome", "scrna", "snrna")
# Folder of what a container holds, which of it is meant, and what it is.
_CONTAINERS = (("mod", _RNA_NAMES, "MuData"), ("tables", ("table",), "SpatialData"))


@contextlib.contextmanager
def open_store(path: Path, place: str = "") -> Iterator[Group]:
    """Opens an HDF5 file or a zarr store for reading, or what lies in it at a place.

    A zarr store keeps a copy of all metadata at its root, which may be older than its arrays: then
    values of a matrix that was written anew are read as another type, without an error. So it is
    not used.
    """
    if is_hdf5(path):
        with h5py.File(path, "r") as root:
            yield root[place] if place else root
        return
    # zarr takes as long to import as NumPy, which HDF5 files should not wait for.
    import zarr

    from geneformer_jax.cells.formats.zarr_stores.whole_chunks import WholeChunks

    options = {"mode": "r", "use_consolidated": False}
    if is_zip(path):
        with zarr.storage.ZipStore(path, mode="r") as store:
            yield zarr.open_group(store, path=place, **options)
        return
    # What lies in a store may be of another version of the format.
    inner = path / place
    with explain_access(inner) if url_of(inner) else contextlib.nullcontext():
        yield zarr.open_group(store_of(inner) if url_of(inner) else WholeChunks(inner), **options)


def is_zip(path: Path) -> bool:
    """Whether a file may be a zipped zarr store, by its name."""
    return path.suffix.lower() == _ZIP and path.is_file()


def zipped_root(path: Path) -> str | None:
    """The folder of the store in a zip file: "" or the one that was zipped; None if none is.

    Raises:
      zipfile.BadZipFile: what describes the store is damaged; zarr would report it as a traceback.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as file:
        described = [name for name in file.namelist() if name.endswith(_METADATA)]
        for member in file.infolist():
            if _unpacks_to_too_much(member):
                raise zipfile.BadZipFile(f"{member.filename} unpacks to far more than any chunk")
        for name in described:
            if file.getinfo(name).file_size > _MOST_METADATA:
                raise zipfile.BadZipFile(f"{name} unpacks to more than any description of a store")
            file.read(name)
    marks = [PurePosixPath(name) for name in described if name.endswith(ZARR_MARKS)]
    folders = sorted({mark.parent for mark in marks}, key=lambda folder: len(folder.parts))
    if not folders or len(folders[0].parts) > 1:
        return None
    return "" if not folders[0].parts else folders[0].name


def _unpacks_to_too_much(member: zipfile.ZipInfo) -> bool:
    return member.file_size > max(_MOST_METADATA, _MOST_PACKED * member.compress_size)


def place_of_anndata(path: Path) -> str:
    """Where the AnnData with the counts of genes lies in a container: "" if it is one itself.

    Raises:
      InputError: it holds several, of which none is known by its name, or none.
    """
    outer = (zipped_root(path) or "") if is_zip(path) else ""
    with open_store(path, outer) as root:
        return f"{outer}/{_place_in(root, path)}".strip("/")


def shown_place(place: str) -> str:
    """Which AnnData of a container a place is, such as mod/rna; "" where it holds but one."""
    *_, folder, name = "", "", *place.split("/")
    return f"{folder}/{name}" if folder in [each for each, *_ in _CONTAINERS] else ""


def _place_in(root: Group, path: Path) -> str:
    if "obs" in root and ("mod" not in root or "X" in root):
        return ""
    for folder, usual, kind in _CONTAINERS:
        if folder in root:
            return f"{folder}/{_pick(_members(path, root, folder), folder, usual, kind, path)}"
    if any(map(DATASET.fullmatch, root)):
        raise InputError(f"{path} is a zipped collection of annbatch; unzip it and give the folder")
    return ""


def _members(path: Path, root: Group, folder: str) -> list[str]:
    if is_zarr(path):
        return [name for name in names_below(path / folder) if is_zarr(path / folder / name)]
    return sorted(root[folder])


def _pick(names: list[str], folder: str, usual: tuple[str, ...], kind: str, path: Path) -> str:
    known = [name for name in names if name.lower() in usual]
    for candidates in (names, known):
        if len(candidates) == 1:
            return candidates[0]
    if not names:
        raise InputError(f"{path} is {kind} that holds nothing; give one with counts of genes")
    listed = ", ".join(f'"{name}"' for name in names)
    way = f"give {path}/{folder}/NAME" if is_zarr(path) else "write the right one as an .h5ad"
    raise InputError(
        f"{path} is {kind} of {listed}; which has the counts of genes is not said: {way}"
    )
