"""What leads out of a folder or file: links of the file system, and HDF5 that reads other files.

Who makes such a file decides what is read of the disk of whoever opens it.
"""

import os
from pathlib import Path

import h5py

from geneformer_jax.common.errors import InputError


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


def require_plain_files(folder: Path) -> None:
    """Checks that no file below a folder is a pipe or a device, which its readers might never end.

    Raises:
      InputError: one is.
    """
    for place, _, files in os.walk(folder):
        for path in (Path(place, name) for name in files):
            # What is not there, as at the end of a broken link, is told where it is read.
            if path.exists() and not path.is_file():
                raise InputError(f"{path} is a pipe or a device, which is not read; remove it")


def require_own_content(path: Path) -> None:
    """Checks that reading an HDF5 file, or a store in a folder, reads nothing else.

    Raises:
      InputError: it would, or a pipe or a device lies there.
    """
    folder = path.resolve()
    require_plain_files(folder)
    if path.is_dir() and holds_link_out(folder, folder):
        raise InputError(
            f"{path} holds links to files that lie elsewhere, which are not followed; if you trust "
            f"them, copy it with what they lead to: cp -rL {path} COPY"
        )
    if path.is_file() and reads_elsewhere(path):
        raise InputError(
            f"{path} takes data from other files (external links, virtual or external data), which "
            "are not read; if you trust them, write it as one file"
        )


def _is_link_out(_name: str, link: object) -> bool | None:
    # None goes on with the next one.
    return isinstance(link, h5py.ExternalLink) or None


def _is_data_elsewhere(_name: str, item: h5py.Group | h5py.Dataset) -> bool | None:
    return (isinstance(item, h5py.Dataset) and bool(item.is_virtual or item.external)) or None
