"""One cell as a record of the cell store: a tf.train.Example, as TFDS reads it.

TFDS's own serialisation reaches some 30,000 cells a second; writing the bytes of the protobuf wire
format for many cells at once takes 3.8 ms for 4,096 cells of 500 tokens (benchmarks/LOG.md). Every
feature is one bytes value: tokens and numbers in little-endian order (TFDS's `Encoding.BYTES`),
text in UTF-8.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from geneformer_jax.common.threads import compiled

_LENGTH_DELIMITED_FIELD_1 = b"\x0a"
_LENGTH_DELIMITED_FIELD_2 = b"\x12"
TOKENS = "tokens"
_TOKENS_KEY = TOKENS.encode()
_TAG_BYTES = 1


class ByteRows(NamedTuple):
    """A bytes value for each cell.

    Attributes:
      content: uint8 [sum of sizes], value after value.
      offsets: int64 [cells + 1]; cell i has content[offsets[i]:offsets[i + 1]].
    """

    content: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of_numbers(cls, values: np.ndarray) -> "ByteRows":
        """Numbers, one per cell, in little-endian order."""
        width = values.itemsize
        content = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8)
        return cls(content, np.arange(len(values) + 1, dtype=np.int64) * width)

    @classmethod
    def of_tokens(cls, tokens: np.ndarray, offsets: np.ndarray) -> "ByteRows":
        """Ragged rows of tokens, see `RankEncodings`."""
        return cls(np.ascontiguousarray(tokens, "<u2").view(np.uint8), offsets * 2)


class _Part(NamedTuple):
    """Some bytes of each record: content[starts[i]:starts[i] + sizes[i]] for record i."""

    content: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


def encode_records(features: Mapping[str, ByteRows]) -> list[bytes]:
    """Returns the tf.train.Example of each cell, which holds one bytes value per feature."""
    parts = []
    for name, values in features.items():
        sizes = np.diff(values.offsets)
        parts.append(_headers(sizes, functools.partial(_header, name)))
        parts.append(_Part(values.content, values.offsets[:-1], sizes))
    inner = np.sum([part.sizes for part in parts], axis=0)
    parts.insert(0, _headers(inner, _record_header))
    ends = np.cumsum(parts[0].sizes + inner)
    at = ends - parts[0].sizes - inner
    starts = at.tolist()
    records = np.empty(ends[-1] if len(ends) else 0, np.uint8)
    for part in parts:
        _put(part.content, part.starts, part.sizes, records, at)
    content = memoryview(records)
    return [bytes(content[start:end]) for start, end in zip(starts, ends.tolist(), strict=True)]


def _headers(sizes: np.ndarray, header_of: Callable[[int], bytes]) -> _Part:
    """The header of each value; only few sizes occur, and each one's header is made once."""
    distinct, number = np.unique(sizes, return_inverse=True)
    headers = [header_of(size) for size in distinct.tolist()]
    lengths = np.array([len(header) for header in headers], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    return _Part(np.frombuffer(b"".join(headers), np.uint8), starts[number], lengths[number])


@compiled
def _put(content, starts, sizes, into, at):
    """Copies one part of each record to its place, and moves that place on."""
    for row in range(len(sizes)):
        # Positions from 0 on, which cannot be negative, let the compiler copy in blocks.
        start, size = starts[row], sizes[row]
        source, target = content[start : start + size], into[at[row] : at[row] + size]
        for i in range(size):
            target[i] = source[i]
        at[row] += size


def decode_tokens(record: bytes) -> np.ndarray:
    """Returns the tokens (uint16) of a record written by `encode_record`.

    Raises:
      ValueError: the record has no tokens.
    """
    position, end = _enter(record, 0)
    while position < end:
        entry, entry_end = _enter(record, position)
        key, key_end = _enter(record, entry)
        if record[key:key_end] == _TOKENS_KEY:
            value = key_end
            for _ in range(3):  # Feature, BytesList, bytes
                value, value_end = _enter(record, value)
            return np.frombuffer(record[value:value_end], dtype="<u2")
        position = entry_end
    raise ValueError(f'a record has no feature "{TOKENS}"')


@functools.lru_cache(maxsize=1 << 16)
def _header(name: str, size: int) -> bytes:
    """All that precedes a value of `size` bytes in the map from names to features."""
    # From the inside out: bytes, BytesList, Feature, then the entry with the name before it.
    header = b""
    for tag in (*(_LENGTH_DELIMITED_FIELD_1,) * 2, _LENGTH_DELIMITED_FIELD_2):
        header = tag + _varint(len(header) + size) + header
    key = name.encode()
    header = _LENGTH_DELIMITED_FIELD_1 + _varint(len(key)) + key + header
    return _LENGTH_DELIMITED_FIELD_1 + _varint(len(header) + size) + header


def _record_header(size: int) -> bytes:
    """What precedes the features of a record, which take `size` bytes."""
    return _LENGTH_DELIMITED_FIELD_1 + _varint(size)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    return bytes((number & 0x7F | 0x80,)) + _varint(number >> 7)


def _enter(record: bytes, position: int) -> tuple[int, int]:
    """Returns where the content of the field at `position` starts and ends."""
    position += _TAG_BYTES
    size = shift = 0
    while True:
        byte = record[position]
        position += 1
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return position, position + size
        shift += 7
