"""Which commands there are, and how one is run by its name."""

import ast
import runpy
from pathlib import Path

from geneformer_jax.common.errors import InputError, did_you_mean

_PACKAGE = Path(__file__).parents[2]


def command_files() -> dict[str, Path]:
    """Returns the module of each command, by name in their order."""
    files = {path.stem: path for path in _PACKAGE.glob("[a-z]*.py")}
    files |= {path.parent.name: path for path in _PACKAGE.glob("*/__main__.py")}
    return dict(sorted(files.items()))


def purpose_of(path: Path) -> str:
    """Returns the first line of a command's help."""
    # Parsed rather than imported, which would define the flags of all commands at once.
    return (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]


def run_command(given: str) -> None:
    """Runs a command with the arguments in `sys.argv`; ends as the command does.

    Args:
      given: its name; hyphens may stand for underscores.

    Raises:
      InputError: there is no such command.
    """
    known, name = command_files(), given.replace("-", "_")
    if name not in known:
        near = did_you_mean(name, known)
        raise InputError(f'there is no command "{given}"{near}; without one all are listed')
    runpy.run_module(f"{_PACKAGE.name}.{name}", run_name="__main__", alter_sys=True)
