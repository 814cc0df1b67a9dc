"""Arguments of wrong types end in one line that names argument, value and remedy."""

import numbers
from pathlib import Path

from geneformer_jax.common.errors import InputError

# Of an argument, or a flag, that once stood for both.
MEANT_BY_LAYER = (
    "the matrix with the raw counts is named by `counts_layer`, the model's hidden states by "
    "`hidden_layer`"
)
_SHOWN = 60


def require_type(name: str, value: object, kinds: type | tuple[type, ...], remedy: str) -> None:
    """Raises InputError unless a value is of one of some types.

    Args:
      name: of the argument.
      value: of the argument.
      kinds: types that it may have.
      remedy: what to give instead.
    """
    if not isinstance(value, kinds):
        raise InputError(f"`{name}` is {describe(value)}; {remedy}")


def require_text(name: str, value: object, what: str) -> None:
    """Raises InputError unless a value is a text, or None."""
    if value is not None:
        require_type(name, value, str, f"give {what}, a text")


def require_key(name: str, value: object, what: str) -> None:
    """Raises InputError unless a value can be a key of `.obsm` or `.uns`, also in a file."""
    require_type(name, value, str, f"give {what}, a text")
    # HDF5 and Zarr make groups of a name with slashes, and have no empty ones.
    if not value or "/" in value:
        raise InputError(f'`{name}` is "{value}"; give {what}, not empty and without /')


def require_path(name: str, value: object, what: str) -> None:
    """Raises InputError unless a value names a file or folder."""
    require_type(name, value, (str, Path), f"give the path of {what}")


def require_whole(name: str, value: object, least: int | None = None) -> None:
    """Raises InputError unless a value is a whole number, and no smaller than `least`."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole:
        raise InputError(f"`{name}` is {describe(value)}; give a whole number")
    if least is not None and value < least:
        raise InputError(f"`{name}` is {value}; give a whole number of at least {least}")


def describe(value: object) -> str:
    """Returns a value as a message shows it: plain values as they are, others by their type."""
    if value is None or isinstance(value, str | Path | numbers.Number):
        shown = repr(str(value) if isinstance(value, Path) else value)
        return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"
