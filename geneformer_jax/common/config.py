"""Checks of configuration values: what a value must be, told with its dotted name."""

from geneformer_jax.common.errors import InputError


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raises InputError, naming --config.`name`, its value and the rule, unless it holds."""
    if not condition:
        raise InputError(f"--config.{name} is {value!r}; {rule}")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises InputError unless --config.`name` is one of the known values."""
    require(value in known, name, value, f"choose one of {', '.join(known)}")
