"""One cell as a record of the cell store: a tf.train.Example, as TFDS reads it.

TFDS's own serialisation reaches some 30,000 cells a second; writing the few bytes of the protobuf
wire format directly is several times faster. Every feature is one bytes value: tokens and numbers
in little-endian order (TFDS's `Encoding.BYTES`), text in UTF-8.
"""

import functools
from collections.abc import Mapping

import numpy as np

_LENGTH_DELIMITED_FIELD_1 = b"\x0a"
_LENGTH_DELIMITED_FIELD_2 = b"\x12"
TOKENS = "tokens"
_TOKENS_KEY = TOKENS.encode()
_TAG_BYTES = 1


def encode_record(features: Mapping[str, bytes]) -> bytes:
    """Returns the tf.train.Example that holds one bytes value per feature."""
    parts = [b""]
    for name, value in features.items():
        parts.append(_header(name, len(value)))
        parts.append(value)
    parts[0] = _LENGTH_DELIMITED_FIELD_1 + _varint(sum(map(len, parts)))
    return b"".join(parts)


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
    """All that stands before a value of `size` bytes in the map from names to features."""
    # From the inside out: bytes, BytesList, Feature, then the entry with the name before it.
    header = b""
    for tag in (*(_LENGTH_DELIMITED_FIELD_1,) * 2, _LENGTH_DELIMITED_FIELD_2):
        header = tag + _varint(len(header) + size) + header
    key = name.encode()
    header = _LENGTH_DELIMITED_FIELD_1 + _varint(len(key)) + key + header
    return _LENGTH_DELIMITED_FIELD_1 + _varint(len(header) + size) + header


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
