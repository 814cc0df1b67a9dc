"""Damage to a file or folder that was valid: to its bytes, to its files, to what they hold.

Everything follows from a `random.Random`, so that a seed names a damaged file. Mutations of content
write a file of the same kind anew, with one thing in it that is not as it was.
"""

import gzip
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.campaigns import containers, texts

# Of the mutations, how many go to bytes where a file's content can be changed too.
_FRACTION_OF_BYTES = 0.4
_FRACTION_OF_FILES = 0.08


def mutate(path: Path, rng: random.Random) -> str:
    """Damages a file, or one of those in a folder; returns in words what was done to which."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    if path.is_dir() and rng.random() < _FRACTION_OF_FILES:
        return _mutate_files(files, rng)
    file = rng.choice(files)
    name = file.name if path.is_file() else file.relative_to(path).as_posix()
    change = _content_mutation(file)
    if change is None or rng.random() < _FRACTION_OF_BYTES:
        change = rng.choice(BYTES)
        file.write_bytes(change(bytearray(file.read_bytes() or b"\0"), rng))
        return f"{change.__name__} of {name}"
    return f"{change(file, rng)} in {name}"


def flip(data: bytearray, rng: random.Random) -> bytearray:
    """Some bytes replaced by others."""
    for _ in range(rng.choice([1, 3, 20, 200])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return data


def cut(data: bytearray, rng: random.Random) -> bytearray:
    """The end is missing, perhaps all of it."""
    return data[: rng.randrange(len(data))]


def blank(data: bytearray, rng: random.Random) -> bytearray:
    """A stretch of zeros, as after a crash of the file system."""
    start, stop = _stretch(data, rng)
    data[start:stop] = bytes(stop - start)
    return data


def double(data: bytearray, rng: random.Random) -> bytearray:
    """A stretch written twice."""
    start, stop = _stretch(data, rng)
    return data[:stop] + data[start:]


def shift(data: bytearray, rng: random.Random) -> bytearray:
    """A few bytes lost or added, so that all behind them moves."""
    at, length = rng.randrange(len(data)), rng.randrange(1, 9)
    if rng.random() < 0.5:
        return data[:at] + data[at + length :]
    return data[:at] + rng.randbytes(length) + data[at:]


BYTES = (flip, cut, blank, double, shift)


def _stretch(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice([1, 64, 512, 4096]))


def _mutate_files(files: list[Path], rng: random.Random) -> str:
    """A file of a folder is gone, or in the place of another."""
    file, other = rng.choice(files), rng.choice(files)
    what = rng.choice(["remove", "swap", "copy over", "folder for"])
    if what == "remove":
        file.unlink()
    elif what == "folder for":
        file.unlink()
        file.mkdir()
    elif what == "copy over" and file != other:
        shutil.copyfile(other, file)
    elif file != other:
        aside = file.with_name(file.name + ".aside")
        os.replace(file, aside)
        os.replace(other, file)
        os.replace(aside, other)
    return f"{what} {file.name}" + (f" {other.name}" if what in ("swap", "copy over") else "")


def _content_mutation(file: Path) -> Callable[[Path, random.Random], str] | None:
    """What changes the content of a file of this kind; None where only bytes are known."""
    head = file.read_bytes()[:8]
    if file.name.startswith(".z") or file.suffix == ".json":
        return _mutate_json
    if head[:2] == b"\x1f\x8b":
        return _mutate_gzip
    if head[:4] == b"PK\x03\x04":
        return _mutate_zip
    if head[:4] == b"PAR1":
        return containers.mutate_parquet
    if head == b"\x89HDF\r\n\x1a\n":
        return containers.mutate_hdf5
    return {
        ".npy": containers.mutate_npy,
        ".arrow": containers.mutate_arrow,
        ".safetensors": _mutate_safetensors,
        ".pkl": _mutate_pickle,
        ".mtx": _mutate_text,
        ".tsv": _mutate_text,
        ".csv": _mutate_text,
        ".txt": _mutate_text,
    }.get(file.suffix)


def _mutate_json(file: Path, rng: random.Random) -> str:
    content = json.loads(file.read_text())
    what = texts.mutate_tree(content, rng)
    file.write_text(json.dumps(content))
    return what


def _mutate_text(file: Path, rng: random.Random) -> str:
    text, what = texts.mutate_lines(file.read_text(), rng)
    file.write_text(text)
    return what


def _mutate_gzip(file: Path, rng: random.Random) -> str:
    text, what = texts.mutate_lines(gzip.decompress(file.read_bytes()).decode(), rng)
    file.write_bytes(gzip.compress(text.encode()))
    return what


def _mutate_pickle(file: Path, rng: random.Random) -> str:
    # The file is one that the campaign itself wrote a moment ago.
    content = pickle.loads(file.read_bytes())
    what = texts.mutate_tree(content, rng)
    file.write_bytes(pickle.dumps(content, protocol=rng.choice([2, 3, 4, 5])))
    return what


def _mutate_safetensors(file: Path, rng: random.Random) -> str:
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    what = texts.mutate_tree(header, rng)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return what


def _mutate_zip(file: Path, rng: random.Random) -> str:
    """A member of an archive is damaged, gone, of another name, or there twice."""
    with zipfile.ZipFile(file) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at, what = rng.randrange(len(members)), rng.choice(["bytes", "remove", "rename", "pack"])
    name, content = members[at]
    kinds = dict.fromkeys((each for each, _ in members), zipfile.ZIP_STORED)
    if what == "bytes":
        members[at] = name, bytes(rng.choice(BYTES)(bytearray(content or b"\0"), rng))
    elif what == "remove":
        del members[at]
    elif what == "rename":
        members[at] = rng.choice(["../", "/", "x/"]) + name, content
    else:
        kinds[name] = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(file, "w") as archive:
        for each, content in members:
            archive.writestr(each, content, kinds.get(each, zipfile.ZIP_STORED))
    return f"{what} {name}"
