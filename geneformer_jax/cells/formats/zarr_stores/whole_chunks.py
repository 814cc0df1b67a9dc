"""Zarr stores in folders, whose chunks are looked at before they are unpacked.

Two codecs believe what a chunk states of itself. Blosc, which AnnData packs zarr's second format
with, takes what lies in memory behind a chunk that was cut short, as of a copy that broke off, for
the rest: other numbers are read without an error. And texts are given room for as many as are
stated, up to 32 GiB for a chunk of some bytes.
"""

import json
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore

from geneformer_jax.cells.formats.paths import ZARR_MARKS

_ARRAYS = (".zarray", "zarr.json")
_NO_CHUNKS = {*ZARR_MARKS, *_ARRAYS, ".zattrs", ".zmetadata"}
_HEADER_BYTES, _NUMBER_BYTES = 16, 4


class WholeChunks(LocalStore):
    """The folder of a zarr store.

    Reading a chunk raises ValueError if it states more than it has.
    """

    def __init__(self, root: Path | str, *, read_only: bool = True):
        """As LocalStore."""
        super().__init__(root, read_only=read_only)
        self._codecs: dict[Path, str] = {}

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """As LocalStore."""
        return self._whole(key, await super().get(key, prototype, byte_range), byte_range)

    def get_sync(self, key: str, *, prototype: Any = None, byte_range: Any = None) -> Any:
        """As LocalStore of newer releases of zarr."""
        found = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return self._whole(key, found, byte_range)

    def _whole(self, key: str, found: Any, byte_range: Any) -> Any:
        # Parts are read of shards alone, which have checksums of their own.
        if found is None or byte_range is not None or (self.root / key).name in _NO_CHUNKS:
            return found
        least = _least_bytes(self._codec(key), found[:_HEADER_BYTES].to_bytes())
        if len(found) < least:
            raise ValueError(
                f"{key} is cut short: it has {len(found):,} of at least {least:,} bytes"
            )
        return found

    def _codec(self, key: str) -> str:
        folder = (self.root / key).parent
        if folder not in self._codecs:
            self._codecs[folder] = _last_codec(folder, self.root)
        return self._codecs[folder]


def _least_bytes(codec: str, header: bytes) -> int:
    """How many bytes a chunk must have that begins so and was packed by a codec at last."""
    if codec == "blosc":
        # The last number of its header is the length with it.
        return max(_HEADER_BYTES, int.from_bytes(header[-_NUMBER_BYTES:], "little"))
    if codec == "vlen-utf8":
        # How many texts there are; each has a length in front.
        return _NUMBER_BYTES * (1 + int.from_bytes(header[:_NUMBER_BYTES], "little"))
    return 0


def _last_codec(folder: Path, root: Path) -> str:
    """What chunks in a folder of an array are packed with at last; "" where nothing says."""
    for parent in (folder, *folder.parents):
        for name in _ARRAYS:
            if (parent / name).is_file():
                described = json.loads((parent / name).read_text())
                packed = [*(described.get("filters") or []), described.get("compressor")]
                codecs = [each for each in described.get("codecs") or packed if each]
                return str(codecs[-1].get("name", codecs[-1].get("id"))) if codecs else ""
        if parent == root:
            break
    return ""
