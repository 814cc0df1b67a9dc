"""Run a command by its name, or list all: `geneformer-jax embed --help`, `geneformer-jax`."""

import sys

from geneformer_jax.common.commands.about import answer
from geneformer_jax.common.commands.catalogue import command_files, purpose_of, run_command
from geneformer_jax.common.commands.completion import SHELLS, completion_script
from geneformer_jax.common.errors import InputError, did_you_mean

_HELP = ("-h", "--help", "-help", "help")
_COMPLETION = "--completion="
_USAGE = f"""\
geneformer-jax NAME runs a command, as does python -m geneformer_jax.NAME; with --help it explains
itself and its flags.

  --version    prints the version
  --cite       prints what to cite
  {_COMPLETION}SHELL    prints completion for {" or ".join(SHELLS)}: eval "$(geneformer-jax \
{_COMPLETION}bash)"

Commands:
"""


def main() -> int:
    """Runs the command that the command line names; returns the exit status where there is none."""
    try:
        if sys.argv[1:] and not sys.argv[1].startswith("-") and sys.argv[1] not in _HELP:
            run_command(sys.argv.pop(1))
        print(_told(sys.argv[1] if sys.argv[1:] else "--help"))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _told(argument: str) -> str:
    if argument in _HELP:
        lines = [f"  {name:<18}{purpose_of(path)}" for name, path in command_files().items()]
        return _USAGE + "\n".join(lines)
    if argument.startswith(_COMPLETION):
        return completion_script(argument.removeprefix(_COMPLETION))
    if (about := answer(argument)) is None:
        near = did_you_mean(argument, ("--help", "--version", "--cite", "--completion"))
        raise InputError(f'"{argument}" is no command, nor a flag of all{near}; see --help')
    return about


if __name__ == "__main__":
    sys.exit(main())
