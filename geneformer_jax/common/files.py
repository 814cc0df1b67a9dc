"""Files and folders that appear whole or not at all, so that nothing partial looks complete."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from geneformer_jax.common.errors import InputError

SOMA_PREFIX = "soma://"
_LOCAL_PREFIX = "file://"
# A folder of this name is removed as a left-over: nobody else calls one so.
_ASIDE = ".partial-geneformer"
# A Path keeps one slash of two. Names of one letter are drives.
_URL = re.compile(r"(?:soma:/+)?([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)
_EDGE_BYTES = 1 << 20
_MATRIX = ".mtx"
_TABLES = {_MATRIX, ".tsv", ".txt", ".csv"}
_SLUG_LETTERS = 80
# Of the 255 that file systems allow.
_LONGEST_NAME = 200
_FLUSHED_AT_ONCE = 8
_REMOVALS = 100
# How TensorStore, below Orbax, tells what some network file systems answer.
_FOLDER_NOT_FLUSHED = f"fsync directory: {os.strerror(errno.EINVAL)}"
# What a disk, or the right to write on it, can lack; `command_line` says what to do about each.
REFUSALS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EIO,
    errno.ESTALE,
    errno.ENOLCK,
)


JsonHook = Callable[[list[tuple[str, Any]]], Any]


def fsync_tree(path: Path) -> None:
    """Flushes a file, or a folder with everything below it, to disk."""
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    # At once: the disk then writes many of them in one go.
    with ThreadPoolExecutor(_FLUSHED_AT_ONCE) as threads:
        list(threads.map(_flush, paths))


def remove(path: Path) -> None:
    """Removes a file or a whole folder; nothing happens if it is not there."""
    tries = _REMOVALS
    while path.is_dir() and not path.is_symlink():
        tries -= 1
        try:
            _remove_folder(path)
        except FileNotFoundError:
            # Another process may be removing it too.
            if not tries:
                raise
    path.unlink(missing_ok=True)


def _remove_folder(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        # It tells names without the folders that they are in.
        error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_write(target: Path | str, owner: str = "") -> Iterator[Path]:
    """Yields a path beside `target` to write a file or folder at; renames it to `target` at last.

    A left-over of a killed run is removed first. If the block raises, what it wrote is removed and
    `target` is as it was. An existing `target` is replaced if it is a file, never if it is a folder
    that holds something (see `require_new_folder`).

    Args:
      target: file or folder.
      owner: part of the name of what is written aside; processes that may write the same target
        at the same time must have different ones.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(target, owner)
    remove(aside)
    try:
        with writing(target):
            yield aside
            fsync_tree(aside)
            os.replace(aside, target)
            fsync_tree_entry(target.parent)
    except BaseException:
        # Where nothing can be written, nothing can be removed; what came first is told.
        with contextlib.suppress(OSError):
            remove(aside)
        raise


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Makes one kind of error of all that the system refuses while `path` is written.

    Raises:
      OSError: with the path, which a write does not tell; also in place of the errors of libraries
        that tell in a text alone what the system said.
      InputError: a library cannot do without what this disk cannot do.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            error.filename = error.filename or str(path)
            raise
        if _FOLDER_NOT_FLUSHED in str(error):
            raise InputError(
                f"{path} lies on a disk that cannot flush folders, which checkpoints need; name a "
                "folder on another"
            ) from error
        if (number := system_error_in(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def system_error_in(error: BaseException) -> int | None:
    """Returns the number of the system's error that the text of another tells of, if it does."""
    text = str(error)
    return next((each for each in REFUSALS if os.strerror(each) in text), None)


def aside_of(target: Path, owner: str = "") -> Path:
    """Returns the path at which `atomic_write` has a target written first."""
    return target.with_name(f"{target.name}{owner and '.'}{owner}{_ASIDE}")


def is_aside(path: Path | str) -> bool:
    """Whether a path is one of `aside_of`, which a killed process may have left there."""
    return Path(path).suffix == _ASIDE


def fsync_tree_entry(folder: Path) -> None:
    """Flushes a folder's own list of names, so that a rename in it survives a power cut."""
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems of networks flush no folders.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def local_path(given: Path | str) -> Path:
    """Returns a path with the home folder for "~", and without "soma://" and "file://" in front.

    What lies behind another URL keeps all of it, since it says how it is read: see `url_of`.
    """
    text = str(given)
    inner = text.removeprefix(SOMA_PREFIX)
    if inner.startswith(_LOCAL_PREFIX):
        inner = inner.removeprefix(_LOCAL_PREFIX)
    return Path(text if _URL.match(inner) else inner).expanduser()


def url_of(path: Path | str) -> str | None:
    """Returns the URL that a path stands for, such as s3://bucket/name; None of a local one."""
    scheme = _URL.match(str(path))
    return f"{scheme[1]}://{str(path)[scheme.end() :]}" if scheme else None


def shown(path: Path | str) -> str:
    """Returns a path as it was given: of a URL with both slashes."""
    return url_of(path) or str(path)


def suffix_of(path: Path | str) -> str:
    """Returns the ending of a file's name as ours are written: ".h5ad" of cells.H5AD."""
    return Path(path).suffix.lower()


def suffixes_of(path: Path | str) -> list[str]:
    """Returns all endings of a file's name, as `suffix_of` does the last: .csv and .gz."""
    return [suffix.lower() for suffix in Path(path).suffixes]


def count_files(paths: Sequence[Path]) -> str:
    """Returns "1 file" or "3 files"."""
    return f"{len(paths):,} file{'' if len(paths) == 1 else 's'}"


def require_new_folder(folder: Path | str, remedy: str = "name a new folder") -> Path:
    """Returns `folder` as a Path if nothing would be overwritten there.

    Raises:
      InputError: `folder` is a file, or a folder that is not empty.
    """
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file, but a folder is to be written there; {remedy}")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} already holds other files and nothing is overwritten; {remedy}")
    return folder


def require_can_appear(path: Path | str, what: str) -> None:
    """Checks that an output can get its name, before the work that it is given it after.

    Args:
      path: of a file or folder to write.
      what: how it is called in the error.

    Raises:
      InputError: a link would be replaced in place of what it leads to, or the working folder;
        something is there that is neither file nor folder; or the name leaves no room for those of
        the files beside it.
    """
    path = Path(path)
    if (size := len(os.fsencode(path.name))) > _LONGEST_NAME:
        raise InputError(
            f"{what}={path} has a name of {size:,} bytes; files beside it have longer ones, so "
            f"that it may have {_LONGEST_NAME}: name a shorter one"
        )
    if path.is_dir() and os.path.samefile(path, os.curdir) and not any(path.iterdir()):
        raise InputError(
            f"{what}={path} is the folder that you are in, which the new one would replace; name "
            "one in it"
        )
    if path.is_symlink() and not (path.is_file() or (path.is_dir() and any(path.iterdir()))):
        raise InputError(
            f"{what}={path} is a symbolic link, which would be replaced in place of "
            f"{os.readlink(path)}; name that itself"
        )
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{what}={path} is no file or folder, but a device or a pipe; name a file")


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, of_pairs: JsonHook | None = None) -> Any:
    """Returns the content of a JSON file.

    Args:
      path: of the file.
      of_pairs: makes objects of their names and values; None makes dicts.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no JSON, or nested deeper than Python reads it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=of_pairs)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def fingerprint(path: Path | str) -> dict[str, str | int]:
    """Name, size and a hash of a file's first and last MiB: cheap for files of any size.

    A folder is described by its number of files, their total size and a hash of their names and
    sizes; what lies behind a URL by that alone.
    """
    path = local_path(path)
    if url := url_of(path):
        return {"name": path.name, "url": url}
    if path.is_dir():
        digest = hashlib.sha256()
        files = _files_of(path)
        for each in files:
            digest.update(f"{each.relative_to(path)}\0{each.stat().st_size}\n".encode())
        size = sum(each.stat().st_size for each in files)
        return {
            "name": path.name,
            "files": len(files),
            "bytes": size,
            "names_and_sizes_sha256": digest.hexdigest(),
        }
    state = path.stat()
    edges = _hash_of_edges(str(path.resolve()), state.st_size, state.st_mtime_ns)
    return {"name": path.name, "bytes": state.st_size, "edges_sha256": edges}


def _files_of(folder: Path) -> list[Path]:
    """The files that a folder is read by, sorted: all below it.

    Beside Matrix Market files only tables are read: who works in such a folder writes others there.
    """
    tables = [each for each in folder.iterdir() if _TABLES & {*suffixes_of(each)}]
    if any(_MATRIX in suffixes_of(each) for each in tables):
        return sorted(each for each in tables if each.is_file())
    return sorted(each for each in folder.rglob("*") if each.is_file())


@functools.lru_cache(maxsize=1 << 14)
def _hash_of_edges(path: str, size: int, _changed: int) -> str:
    """One run asks several times for the fingerprint of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(_EDGE_BYTES))
        file.seek(max(size - _EDGE_BYTES, 0))
        digest.update(file.read(_EDGE_BYTES))
    return digest.hexdigest()


def state_of(path: Path | str) -> str:
    """Size and time of change of a file, of a folder those of all files in it, as a short text.

    Nothing is read; what lies behind a URL is described by it alone.
    """
    path = local_path(path)
    if url := url_of(path):
        return url
    if not path.is_dir():
        state = path.stat()
        return f"{state.st_size}-{state.st_mtime_ns}"
    digest = hashlib.sha256()
    for each in _files_of(path):
        state = each.stat()
        name = each.relative_to(path)
        digest.update(f"{name}\0{state.st_size}-{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def states_of(paths: Iterable[Path | str], output: Path | str) -> dict[Path | str, str]:
    """Returns the states of what a run reads, for `require_unchanged`.

    Args:
      paths: that are read.
      output: of the run; a folder that it lies in changes with it, and its state is "", as that of
        what is not there.
    """
    return {path: state_of(path) if is_looked_at(path, output) else "" for path in paths}


def is_looked_at(path: Path | str, output: Path | str) -> bool:
    """Whether something is there that does not change with the output of what reads it."""
    return bool(url_of(path)) or (local_path(path).exists() and not lies_in(output, path))


def require_unchanged(states: Mapping[Path | str, str]) -> None:
    """Raises InputError if something is not as it was, see `states_of` and `state_of`."""
    for path, before in states.items():
        if before and state_of(path) != before:
            raise InputError(
                f"{path} has changed since it was looked at; run the same command again"
            )


def lies_in(output: Path | str, folder: Path | str) -> bool:
    """Whether a path lies below another."""
    return Path(output).resolve().is_relative_to(local_path(folder).resolve())


def slug(text: object) -> str:
    """Returns a text as part of a file name: words joined by underscores, at most 80 letters."""
    kept = (letter if letter.isalnum() or letter in "-_." else " " for letter in str(text))
    return "_".join("".join(kept).split())[:_SLUG_LETTERS]
