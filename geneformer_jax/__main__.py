"""Lists the commands, each with the first line of its help: `python -m geneformer_jax`."""

import ast
import sys
from pathlib import Path

_HERE = Path(__file__).parent


def main() -> int:
    """Prints the list; returns the exit status."""
    commands = {path.stem: path for path in _HERE.glob("[a-z]*.py")}
    commands |= {path.parent.name: path for path in _HERE.glob("*/__main__.py")}
    given = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    if given in commands:
        print(f"error: the name follows a dot: python -m geneformer_jax.{given}", file=sys.stderr)
        return 1
    if given:
        print(f'error: there is no command "{given}"; without it all are listed', file=sys.stderr)
        return 1
    print("Each is run as python -m geneformer_jax.NAME; --help explains it and its flags.\n")
    for name in sorted(commands):
        # Parsed rather than imported, which would define the flags of all commands at once.
        about = ast.get_docstring(ast.parse(commands[name].read_text())) or ""
        print(f"  {name:<18}{about.splitlines()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
