"""Sizes that TileDB's own small files state, looked at before its library allots so much memory.

Descriptions of groups and arrays are a file each, of one generic tile (TileDB's format
specification, generic_tile.md and filter_pipeline.md): a header with the sizes of what follows,
the filters, and chunks with sizes of their own. Those of fragments are of many tiles, and a footer
that says where each begins (fragment.md). The library believes all of them: of files of some
hundred bytes, in which one was damaged, it took gigabytes. Data are not looked at here.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

# Version, bytes stored, bytes unpacked, type, size of a cell, encryption, bytes of the filters.
_HEADER = struct.Struct("<IQQBQBI")
# Bytes unpacked, bytes stored, bytes of notes.
_CHUNK = struct.Struct("<III")
_NUMBER = struct.Struct("<Q")
_DESCRIPTIONS = {"__group", "__meta", "__schema", "__enumerations"}
_OF_FRAGMENT = "__fragment_metadata.tdb"
_DATA = {"__commits", "__fragment_meta"}
# Since this version of the format the footer of a fragment tells its length.
_WITH_LENGTH = 10
# More than gzip packs, and what is no harm in any case.
_PACKED, _HARMLESS = 1100, 1 << 26


def require_stated_sizes(folder: Path) -> None:
    """Checks the descriptions of all groups, arrays and fragments below a folder.

    Raises:
      OSError: a file states sizes that it cannot have.
    """
    for path in _descriptions(folder):
        content = memoryview(path.read_bytes())
        tiles = _tiles_of_fragment(content) if path.name == _OF_FRAGMENT else [content]
        if not all(map(_is_possible, tiles)):
            raise OSError(f"{path.relative_to(folder)} is damaged: it states impossible sizes")


def _descriptions(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = set(folders) - _DATA
        if os.path.basename(parent) in _DESCRIPTIONS:
            # Those with an ending list what may be removed.
            yield from (Path(parent, name) for name in files if "." not in name)
        if _OF_FRAGMENT in files:
            yield Path(parent, _OF_FRAGMENT)


def _tiles_of_fragment(content: memoryview) -> Iterator[memoryview]:
    """Yields what begins with each tile, until one that is not possible."""
    at, end = 0, len(content) - _NUMBER.size
    if end < _HEADER.size or _HEADER.unpack_from(content)[0] < _WITH_LENGTH:
        return
    end -= _NUMBER.unpack_from(content, end)[0]
    while at + _HEADER.size <= end:
        yield content[at:end]
        _, stored, _, _, _, _, filters = _HEADER.unpack_from(content, at)
        at += _HEADER.size + filters + stored


def _is_possible(content: memoryview) -> bool:
    if len(content) < _HEADER.size:
        # The library says so.
        return True
    _, stored, unpacked, _, _, encryption, filters = _HEADER.unpack_from(content)
    first = _HEADER.size + filters
    if first + stored > len(content) or not _can_unpack(unpacked, stored):
        return False
    # Whoever has the key to an encrypted file may look into it.
    return bool(encryption) or stored < _NUMBER.size or _chunks_fit(content[first:])


def _chunks_fit(tile: memoryview) -> bool:
    (chunks,) = _NUMBER.unpack_from(tile)
    place = _NUMBER.size
    for _ in range(min(chunks, len(tile))):
        if place + _CHUNK.size > len(tile):
            return False
        unpacked, stored, notes = _CHUNK.unpack_from(tile, place)
        place += _CHUNK.size + stored + notes
        if place > len(tile) or not _can_unpack(unpacked, stored):
            return False
    return chunks <= len(tile)


def _can_unpack(unpacked: int, stored: int) -> bool:
    return unpacked <= max(_HARMLESS, _PACKED * stored)
