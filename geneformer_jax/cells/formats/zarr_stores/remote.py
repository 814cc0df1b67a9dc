"""Zarr stores behind URLs, such as s3://, gs:// and https://, through fsspec."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import url_of

if TYPE_CHECKING:
    import fsspec
    import zarr

_LONGEST = 200


@contextlib.contextmanager
def explain_access(path: Path) -> Iterator[None]:
    """Turns what goes wrong on the way to another machine into one line.

    Raises:
      InputError: the library for such URLs is not installed, nobody answers, or access is denied.
    """
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{url_of(path)} cannot be read: {_remedy(error)}") from error
    # The libraries behind fsspec have errors of their own, without a common kind.
    except Exception as error:
        reason = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        raise InputError(
            f"{url_of(path)} cannot be read: {reason}; check the address and the access to it, for "
            "S3 by AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error


def _remedy(error: ImportError) -> str:
    return f'{error}; pip install "geneformer_jax[remote]" reads s3:// and https://'


def names_in(path: Path) -> list[str]:
    """Returns the sorted names of what lies in a folder behind a URL; none if nothing is there.

    Raises:
      InputError: as `explain_access`.
    """
    with explain_access(path):
        files, place = _find(path)
        # What was listed before may have changed since.
        files.invalidate_cache(place)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            listed = (each.strip("/") for each in files.ls(place, detail=False))
            return sorted({each.rpartition("/")[2] for each in listed if each != place.strip("/")})
        return []


def store_of(path: Path) -> zarr.storage.FsspecStore:
    """Returns the store behind a URL, for reading."""
    import zarr

    return zarr.storage.FsspecStore.from_url(url_of(path), read_only=True)


def _find(path: Path) -> tuple[fsspec.AbstractFileSystem, str]:
    # Takes a tenth of a second to import, which files on this machine should not wait for.
    import fsspec

    return fsspec.core.url_to_fs(url_of(path))
