"""Completion of commands, flags and their values in bash and zsh, made from the flags themselves.

A script is printed once, by `geneformer-jax --completion=bash`, and needs no Python when it works.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from geneformer_jax.common.commands.about import ANSWERS
from geneformer_jax.common.commands.catalogue import command_files, purpose_of
from geneformer_jax.common.errors import InputError, did_you_mean

_BASH = """\
_geneformer_jax() {{
  # From the line, as bash takes the = in --flag=value for a border of words.
  local line=${{COMP_LINE:0:COMP_POINT}} reply words
  # Behind -- stands the command that is shared out.
  [[ $line == *" -- "* ]] && line="geneformer-jax ${{line#* -- }}"
  local last=${{line##* }}
  read -r -a words <<< "$line"
  COMPREPLY=()
  if [[ $last == --*=* ]]; then
    case "${{words[1]}} ${{last%%=*}}" in
{values}
      *) compopt -o filenames 2> /dev/null
        while IFS= read -r reply; do COMPREPLY+=("$reply"); done \\
          < <(compgen -f -- "${{last#*=}}") ;;
    esac
  elif (( ${{#words[@]}} < 2 )) || [[ ${{#words[@]}} -eq 2 && -n $last ]]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$last"))
  else
    case ${{words[1]}} in
{flags}
    esac
    [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2> /dev/null
  fi
}}
complete -F _geneformer_jax geneformer-jax"""
_ZSH = """\
#compdef geneformer-jax
_geneformer_jax() {{
  local shared=${{words[(I)--]}}
  # Behind -- stands the command that is shared out.
  if (( shared > 1 && shared < CURRENT )); then
    words=(geneformer-jax "${{(@)words[shared+1,-1]}}")
    (( CURRENT -= shared - 1 ))
  fi
  if (( CURRENT == 2 )); then
    local -a commands
    commands=(
{commands}
    )
    _describe command commands
    return
  fi
  local command=${{words[2]}}
  shift words
  (( CURRENT -= 1 ))
  case $command in
{flags}
  esac
}}
compdef _geneformer_jax geneformer-jax"""


class _Flag(NamedTuple):
    """A flag: its name, what it means, its values where they are few, whether it stands alone."""

    name: str
    meaning: str
    values: Sequence[str]
    is_switch: bool


def completion_script(shell: str) -> str:
    """Returns the script that a shell reads, as by `eval`, to complete command lines.

    Raises:
      InputError: there is none for such a shell.
    """
    if shell not in SHELLS:
        near = did_you_mean(shell, SHELLS)
        raise InputError(f'no completion for "{shell}"{near}; give {" or ".join(SHELLS)}')
    of_commands = {name: _flags_of(path) for name, path in command_files().items()}
    return SHELLS[shell](of_commands)


def _bash(of_commands: dict[str, list[_Flag]]) -> str:
    values = [
        f'      "{name} --{flag.name}") COMPREPLY=($(compgen -W "{" ".join(flag.values)}" '
        '-- "${last#*=}")) ;;'
        for name, known in of_commands.items()
        for flag in known
        if flag.values
    ]
    listed = {
        name: " ".join(f"--{flag.name}{'' if flag.is_switch else '='}" for flag in known)
        for name, known in of_commands.items()
    }
    cases = [
        f'      {name}) COMPREPLY=($(compgen -W "{words}" -- "$last")) ;;'
        for name, words in listed.items()
    ]
    commands = " ".join([*of_commands, *ANSWERS])
    return _BASH.format(values="\n".join(values), commands=commands, flags="\n".join(cases))


def _zsh(of_commands: dict[str, list[_Flag]]) -> str:
    files = command_files()
    commands = [f"      {_quoted(f'{name}:{purpose_of(files[name])}')}" for name in of_commands]
    cases = [
        f"    {name}) _arguments {' '.join(map(_zsh_flag, known))} ;;"
        for name, known in of_commands.items()
    ]
    return _ZSH.format(commands="\n".join(commands), flags="\n".join(cases))


def _zsh_flag(flag: _Flag) -> str:
    # Brackets would end the meaning.
    meaning = flag.meaning.translate(str.maketrans("[]", "()"))
    if flag.is_switch:
        return _quoted(f"--{flag.name}[{meaning}]")
    values = f"({' '.join(flag.values)})" if flag.values else "_files"
    return _quoted(f"--{flag.name}=[{meaning}]:{flag.name}:{values}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _flags_of(path: Path) -> list[_Flag]:
    """Returns the flags of a command, by name; they are not left defined."""
    parts = path.relative_to(Path(__file__).parents[3]).with_suffix("").parts
    before = set(flags.FLAGS)
    module = importlib.import_module(".".join(parts))
    try:
        own = flags.FLAGS.get_key_flags_for_module(module.__name__)
        return sorted([*map(_described, own), *_of_all()])
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


def _described(flag: flags.Flag) -> _Flag:
    meaning = " ".join((flag.help or "").split()).partition(". ")[0]
    values = getattr(flag.parser, "enum_values", ())
    return _Flag(flag.name, meaning, values, bool(flag.boolean))


def _of_all() -> Iterator[_Flag]:
    for name in ("help", "json", *(each.lstrip("-") for each in ANSWERS)):
        yield _Flag(name, "Of every command", (), True)


SHELLS: dict[str, Callable[[dict[str, list[_Flag]]], str]] = {"bash": _bash, "zsh": _zsh}
