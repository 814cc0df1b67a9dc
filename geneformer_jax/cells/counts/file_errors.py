"""Damaged files end in one line that names them, whichever library failed on them."""

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from geneformer_jax.common.errors import InputError

# What h5py, zarr, numcodecs, anndata, pandas and gzip raise on damaged bytes. A damaged length
# asks for absurd amounts of memory, hence MemoryError.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    AssertionError,
    SystemError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    pa.ArrowException,
)
# zarr has one of its own of the first kind, for what is no group, without the system's number.
_OF_THE_SYSTEM = (FileNotFoundError, PermissionError, IsADirectoryError)
_LONGEST = 300


@contextlib.contextmanager
def explain_damage(path: Path, kind: str) -> Iterator[None]:
    """Turns what a library raises on a damaged file into an InputError that names the file.

    Raises:
      InputError: anything in the block failed, except that missing files and permissions keep
        their own errors.
    """
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        if isinstance(error, _OF_THE_SYSTEM) and error.errno:
            raise
        what = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        raise InputError(
            f"{path} cannot be read as {kind}: {what}; if it is {kind}, it is damaged or not "
            "complete: copy or write it again"
        ) from error
