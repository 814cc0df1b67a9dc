"""Configurations as frozen dataclasses: filled from nested mappings, and checked."""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from geneformer_jax.common.arguments import describe
from geneformer_jax.common.errors import InputError, did_you_mean

# Devices count in 32 bits, and NumPy's and JAX's random generators take seeds of 63.
LARGEST_COUNT, LARGEST_SEED = 2**31 - 1, 2**63 - 1
_KEYS_OF = "keys of"
# What a field of a plain type takes; true and false are no numbers.
_PLAIN = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a finite number"),
    str: (str, "a text"),
}


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raises InputError, naming `config.NAME`, its value and the rule, unless it holds."""
    if not condition:
        raise InputError(f"`config.{name}` is {value!r}; {rule}")


def require_count(name: str, value: int, least: int, what: str = "") -> None:
    """Raises InputError unless `config.NAME` is a number that a device can count to.

    Args:
      name: of the value.
      value: to be checked.
      least: smallest that may be.
      what: the smallest one means; empty if nothing else than any other.
    """
    what = f" ({what})" if what else ""
    rule = f"from {least}{what} to {LARGEST_COUNT:,}"
    require(least <= value <= LARGEST_COUNT, name, value, rule)


def require_seed(value: int) -> None:
    """Raises InputError unless `config.seed` is a seed."""
    require(0 <= value <= LARGEST_SEED, "seed", value, "from 0 to 2^63 - 1")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises InputError unless `config.NAME` is one of the known values."""
    require(value in known, name, value, f"choose one of {', '.join(known)}")


def keys_of(kind: type) -> dict[str, type]:
    """Returns the metadata of a field that holds a dict whose keys are fields of `kind`."""
    return {_KEYS_OF: kind}


def section_of(field: dataclasses.Field) -> type | None:
    """Returns the dataclass whose fields are the keys below a field; None if it is one value."""
    return field.type if dataclasses.is_dataclass(field.type) else field.metadata.get(_KEYS_OF)


def fill(kind: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Returns a dataclass of `kind`, and those within it, filled from nested mappings.

    Args:
      kind: a dataclass that checks its own values.
      values: as from an ml_collections file, or from JSON.
      prefix: of the names in messages.

    Raises:
      InputError: an unknown key, or a value that cannot be.
    """
    fields = _checked_fields(kind, values, prefix)
    arguments = {}
    for name, value in values.items():
        nested = fields[name].type
        if dataclasses.is_dataclass(nested):
            value = fill(nested, value, f"{prefix}{name}.")
        elif keys := fields[name].metadata.get(_KEYS_OF):
            _checked_fields(keys, value, f"{prefix}{name}.")
            value = dict(value)
        arguments[name] = value
    missing = [name for name, field in fields.items() if _is_needed(field) and name not in values]
    if missing:
        raise InputError(f'`config` has no "{prefix}{missing[0]}", which is needed; give it')
    return kind(**arguments)


def _is_needed(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _checked_fields(
    kind: type, values: Mapping[str, Any], prefix: str
) -> dict[str, dataclasses.Field]:
    """Returns the fields of a dataclass by name, if `values` are some of them, of their types."""
    # A ConfigDict is no Mapping.
    if not hasattr(values, "items"):
        section = f"config.{prefix}".rstrip(".")
        raise InputError(f"`{section}` is {describe(values)}; give its keys with their values")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    _check_keys(values, fields, prefix)
    for name, value in values.items():
        _check_type(f"{prefix}{name}", value, fields[name].type)
    return fields


def _check_type(name: str, value: object, kind: Any) -> None:
    """Raises InputError unless a value is of the plain type of its field."""
    if kind not in _PLAIN:
        return
    allowed, what = _PLAIN[kind]
    right = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    if not right or (kind is float and not math.isfinite(value)):
        raise InputError(f"`config.{name}` is {describe(value)}; give {what}")


def _check_keys(values: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    for name in values:
        if name not in known:
            hint = did_you_mean(name, known)
            raise InputError(f'`config` has no key "{prefix}{name}"{hint}; see the file\'s keys')
