"""What `--help` prints: what a command does, the flags it needs, all others, its configuration."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from geneformer_jax.common.config import section_of

_WIDTH = 98
_INDENT = " " * 6
_NOTHING: tuple = (None, "", [])
# "  keep, drop: what they mean" in the section of attributes of a docstring.
_ATTRIBUTE = re.compile(r"  (\w+(?:, \w+)*): (.*)")


def command_help(
    purpose: str, known: Sequence[flags.Flag], needed: Sequence[str], spared: Mapping[str, Sequence]
) -> list[str]:
    """Returns the lines on a command and its flags.

    Args:
      purpose: what it does, with examples.
      known: all its flags.
      needed: names of those that must be given.
      spared: name of a flag -> names of needed ones that need not be given beside it.
    """
    by_name = {flag.name: flag for flag in known}
    lines = [purpose.strip()]
    if needed:
        lines += ["", "Needed:"]
        for name in needed:
            beside = " or ".join(f"--{each}" for each, freed in spared.items() if name in freed)
            lines += _flag_lines(by_name.pop(name), f"not with {beside}" if beside else "")
    lines += ["", "Flags:"]
    for name in sorted(by_name):
        default = by_name[name].default
        lines += _flag_lines(by_name[name], "" if default in _NOTHING else f"default: {default}")
    return lines


def _flag_lines(flag: flags.Flag, remark: str) -> list[str]:
    # absl's own remark on repeated flags becomes a sentence of the help.
    text, repeated, _ = (flag.help or "").partition(";\n")
    text = f"{text.rstrip('.')}. May be repeated." if repeated else text
    body = textwrap.fill(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return [f"  --{flag.name}" + (f"  ({remark})" if remark else ""), body]


class Key(NamedTuple):
    """A value of a configuration: its dotted name, its default, what it means."""

    name: str
    default: object
    meaning: str


def configuration_help(kinds: Mapping[str, type]) -> list[str]:
    """Returns the lines on the values of a configuration file.

    Args:
      kinds: section -> dataclass of its values; "" for those at the top.
    """
    keys = [key for section, kind in kinds.items() for key in keys_of(kind, section)]
    left = max(len(key.name) for key in keys) + 4
    lines = ["", "Configuration: --config.KEY=VALUE changes a value of the file. (Its default:)"]
    for key in keys:
        meaning = f"{key.meaning.rstrip('.')} ({_shown(key.default)})"
        wrapped = textwrap.wrap(meaning, _WIDTH - left) or [""]
        lines.append(f"  {key.name:<{left - 2}}{wrapped[0]}")
        lines += [" " * left + each for each in wrapped[1:]]
    return lines


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return "; ".join(map(str, default)) or "none"
    return "none" if default in ("", None) or default == {} else str(default)


def keys_of(kind: type, section: str = "") -> Iterator[Key]:
    """Yields the values of a dataclass and of those within it, as its docstring explains them."""
    prefix = f"{section}." if section else ""
    meanings = _meanings(kind)
    for field in dataclasses.fields(kind):
        default = _default(field)
        if below := section_of(field):
            for key in keys_of(below, prefix + field.name):
                # The defaults of a section may be others than those of its class.
                own = key.name.rpartition(".")[2]
                yield key._replace(default=getattr(default, own, key.default))
        else:
            yield Key(prefix + field.name, default, meanings.get(field.name, ""))


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "as in the file" if field.default is dataclasses.MISSING else field.default


def _meanings(kind: type) -> dict[str, str]:
    """Name -> meaning, of the section "Attributes" of a class and of those it is made from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, attributes = (inspect.cleandoc(each.__doc__ or "")).partition("Attributes:\n")
        names: list[str] = []
        for line in attributes.splitlines():
            if begins := _ATTRIBUTE.fullmatch(line):
                names = begins[1].split(", ")
                found.update(dict.fromkeys(names, begins[2]))
            elif line.startswith("    "):
                found.update({name: f"{found[name]} {line.strip()}" for name in names})
            elif line.strip():
                break
    return found
