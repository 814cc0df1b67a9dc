"""Compression that HDF5 itself does not know: hdf5plugin brings it, where that is installed."""

import contextlib
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import h5py

from geneformer_jax.common.errors import InputError

# Filters as registered with the HDF Group, for those that hdf5plugin brings.
_NAMES = {
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "Bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32018: "FCIDECOMP",
    32024: "SZ3",
    32026: "Blosc2",
    32028: "SPERR",
}


def require_filters(nodes: Iterable[h5py.Group | h5py.Dataset], path: Path) -> None:
    """Makes sure that datasets can be unpacked; looks into groups one level deep.

    Raises:
      InputError: a filter is not there; names it, and the package that has it.
    """
    for code in sorted({code for node in nodes for code in _filters(node)}):
        if h5py.h5z.filter_avail(code):
            continue
        with contextlib.suppress(ImportError):
            # Importing it makes all of its filters known to HDF5.
            import_module("hdf5plugin")
        if not h5py.h5z.filter_avail(code):
            name = _NAMES.get(code, f"HDF5 filter {code}")
            raise InputError(
                f"{path} is compressed with {name}, which HDF5 itself does not know; install the "
                "package that does: pip install hdf5plugin"
            )


def _filters(node: object) -> Iterable[int]:
    if isinstance(node, h5py.Group):
        for member in node.values():
            if isinstance(member, h5py.Dataset):
                yield from _filters(member)
    elif isinstance(node, h5py.Dataset) and node.chunks is not None:
        creation = node.id.get_create_plist()
        yield from (creation.get_filter(number)[0] for number in range(creation.get_nfilters()))
