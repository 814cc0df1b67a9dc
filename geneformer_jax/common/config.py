"""Configurations as frozen dataclasses: filled from nested mappings, and checked."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from geneformer_jax.common.errors import InputError, did_you_mean

_KEYS_OF = "keys of"


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raises InputError, naming `config.NAME`, its value and the rule, unless it holds."""
    if not condition:
        raise InputError(f"`config.{name}` is {value!r}; {rule}")


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
    fields = {field.name: field for field in dataclasses.fields(kind)}
    _check_keys(values, fields, prefix)
    arguments = {}
    for name, value in values.items():
        nested = fields[name].type
        if dataclasses.is_dataclass(nested):
            value = fill(nested, value, f"{prefix}{name}.")
        elif keys := fields[name].metadata.get(_KEYS_OF):
            known = [field.name for field in dataclasses.fields(keys)]
            _check_keys(value, known, f"{prefix}{name}.")
            value = dict(value)
        arguments[name] = value
    return kind(**arguments)


def _check_keys(values: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    for name in values:
        if name not in known:
            hint = did_you_mean(name, known)
            raise InputError(f'`config` has no key "{prefix}{name}"{hint}; see the file\'s keys')
