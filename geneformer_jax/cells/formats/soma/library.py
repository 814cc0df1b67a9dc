"""The TileDB-SOMA library, which is an extra: found or asked for, and its objects opened."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from geneformer_jax.cells.formats.soma.stated_sizes import require_stated_sizes
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import url_of

if TYPE_CHECKING:
    import tiledbsoma

# An earlier release of that name, which pip takes where there is no build, has another interface.
_OLDEST = (2, 3)
_FIRST_PYTHON_WITHOUT = (3, 14)
# Of each column that is read; the library's own 1 GiB would be allotted several times.
_BUFFER_BYTES = 1 << 26
# One pool of threads for each core of a large machine is slower than a few.
_MOST_THREADS = 16
_LONGEST = 200
_CHECK_ACCESS = (
    "check the address, and for S3 the variables TILEDB_VFS_S3_REGION and AWS_ACCESS_KEY_ID, or "
    "TILEDB_VFS_S3_NO_SIGN_REQUEST=true where no key is needed"
)


def require_library(path: Path) -> None:
    """Checks that tiledbsoma can be imported.

    Raises:
      InputError: it is not installed, too old, or does not fit what is installed beside it.
    """
    try:
        version = importlib.metadata.version("tiledbsoma")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    if version != "none" and tuple(map(int, version.split(".")[:2])) >= _OLDEST:
        _try_import(path, version)
        return
    oldest = ".".join(map(str, _OLDEST))
    raise InputError(
        f"{path} is TileDB-SOMA, to read which takes tiledbsoma {oldest} or newer, and installed "
        f"is {version}: {_remedy()}"
    )


def _try_import(path: Path, version: str) -> None:
    try:
        import tiledbsoma  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{path} is TileDB-SOMA, but tiledbsoma {version} cannot be imported "
            f"({first_sentence(error)}): {_remedy()}"
        ) from error


def _remedy() -> str:
    if sys.version_info >= _FIRST_PYTHON_WITHOUT:
        return "use Python 3.11 to 3.13, for which it is built"
    return 'pip install "geneformer_jax[census]"'


@contextlib.contextmanager
def open_object(path: Path) -> Iterator[tiledbsoma.SOMAObject]:
    """Opens what lies at a path for reading, and closes it with all that was opened of it.

    Raises:
      OSError: the library cannot read it; its errors are of no common kind.
      InputError: the same of what lies in an object store.
    """
    import tiledbsoma

    url = url_of(path)
    # The library takes a relative path from the folder that it was first used in.
    place = url or str(path.absolute())
    if url is None:
        require_stated_sizes(path)
    try:
        with tiledbsoma.open(place, context=context_of(os.getpid())) as opened:
            yield opened
    # Of TileDB below it some errors are none of its own.
    except (tiledbsoma.SOMAError, RuntimeError) as error:
        if url is None:
            raise OSError(first_sentence(error)) from error
        reason = first_sentence(error)[:_LONGEST]
        raise InputError(f"{url} cannot be read: {reason}; {_CHECK_ACCESS}") from error


def first_sentence(error: Exception) -> str:
    """What an error of the library says, without the places in its source."""
    return str(error).strip().partition("\n")[0].removeprefix("SOMAError: ").strip("'")


@functools.cache
def context_of(process: int) -> tiledbsoma.SOMATileDBContext:
    """Settings and threads, which many opened objects share, but a forked process does not have."""
    import tiledbsoma

    threads = min(os.cpu_count() or 1, _MOST_THREADS)
    return tiledbsoma.SOMATileDBContext(
        tiledb_config={
            "soma.init_buffer_bytes": _BUFFER_BYTES,
            "sm.compute_concurrency_level": threads,
            "sm.io_concurrency_level": threads,
        }
    )
