"""What leads out of a folder: links of the file system, and files of HDF5 that read others."""

import os
from pathlib import Path

import h5py


def leads_out(path: Path, root: Path) -> bool:
    """Whether a path is a link to something that does not lie below a folder."""
    return path.is_symlink() and not path.resolve().is_relative_to(root)


def holds_link_out(folder: Path, root: Path) -> bool:
    """Whether something below a folder leads out of `root`, where its readers would follow it."""
    return any(
        leads_out(Path(place) / each, root)
        for place, folders, files in os.walk(folder)
        for each in (*folders, *files)
    )


def reads_elsewhere(path: Path) -> bool:
    """Whether reading an HDF5 file would read others: by links, virtual or external data."""
    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        return bool(file.visititems_links(_is_link_out) or file.visititems(_is_data_elsewhere))


def _is_link_out(_name: str, link: object) -> bool | None:
    # None goes on with the next one.
    return isinstance(link, h5py.ExternalLink) or None


def _is_data_elsewhere(_name: str, item: h5py.Group | h5py.Dataset) -> bool | None:
    return (isinstance(item, h5py.Dataset) and bool(item.is_virtual or item.external)) or None
