"""Zarr stores in folders, whose chunks are looked at before they are unpacked.

Two codecs believe what a chunk states of itself. Blosc, which AnnData packs zarr's second format
with, takes what lies in memory behind a chunk that was cut short, as of a copy that broke off, for
the rest: other numbers are read without an error. And texts are given room for as many as are
stated, up to 32 GiB for a chunk of some bytes.
"""

import json
from pathlib import Path
from typing import Any

import numcodecs
from zarr.storage import LocalStore

from geneformer_jax.cells.formats.paths import ZARR_MARKS

_ARRAYS = (".zarray", "zarr.json")
_NO_CHUNKS = {*ZARR_MARKS, *_ARRAYS, ".zattrs", ".zmetadata"}
_HEADER_BYTES, _NUMBER_BYTES = 16, 4
_TEXTS = "vlen-utf8"
# What chunks of texts may be packed by, so that they are looked into.
_PACKERS = {"zstd", "blosc", "gzip", "zlib", "lz4"}


class WholeChunks(LocalStore):
    """The folder of a zarr store.

    Reading a chunk raises ValueError if it states more than it has.
    """

    def __init__(self, root: Path | str, *, read_only: bool = True):
        """As LocalStore."""
        super().__init__(root, read_only=read_only)
        self._known: dict[Path, tuple[str, ...]] = {}

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """As LocalStore."""
        return self._whole(key, await super().get(key, prototype, byte_range), byte_range)

    def get_sync(self, key: str, *, prototype: Any = None, byte_range: Any = None) -> Any:
        """As LocalStore of newer releases of zarr."""
        found = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return self._whole(key, found, byte_range)

    def _whole(self, key: str, found: Any, byte_range: Any) -> Any:
        # Parts are read of shards alone, which have checksums of their own.
        if found is not None and byte_range is None and (self.root / key).name not in _NO_CHUNKS:
            _require_whole(key, found, self._codecs(key))
        return found

    def _codecs(self, key: str) -> tuple[str, ...]:
        folder = (self.root / key).parent
        if folder not in self._known:
            self._known[folder] = _codecs_of(folder, self.root)
        return self._known[folder]


def _require_whole(key: str, chunk: Any, codecs: tuple[str, ...]) -> None:
    if codecs[-1:] == ("blosc",):
        # The last number of its header is the length with it.
        stated = _number(chunk[:_HEADER_BYTES].to_bytes()[-_NUMBER_BYTES:])
        if len(chunk) < max(_HEADER_BYTES, stated):
            raise ValueError(f"{key} is cut short: it has {len(chunk):,} of {stated:,} bytes")
    if _TEXTS in codecs and {*(packers := codecs[codecs.index(_TEXTS) + 1 :])} <= _PACKERS:
        content = chunk.to_bytes()
        for packer in reversed(packers):
            content = numcodecs.get_codec({"id": packer}).decode(content)
        # In front of each text there is its length, in front of all how many there are.
        if (texts := _number(bytes(content[:_NUMBER_BYTES]))) >= len(content) / _NUMBER_BYTES:
            raise ValueError(f"{key} is damaged: it has no room for the {texts:,} texts it states")


def _number(content: bytes) -> int:
    return int.from_bytes(content, "little")


def _codecs_of(folder: Path, root: Path) -> tuple[str, ...]:
    """Names of what chunks in a folder of an array went through; none where nothing says."""
    for parent in (folder, *folder.parents):
        for name in _ARRAYS:
            if (parent / name).is_file():
                described = json.loads((parent / name).read_text())
                packed = [*(described.get("filters") or []), described.get("compressor")]
                codecs = [each for each in described.get("codecs") or packed if each]
                return tuple(str(each.get("name", each.get("id"))) for each in codecs)
        if parent == root:
            break
    return ()
