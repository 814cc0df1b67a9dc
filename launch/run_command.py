"""One command of the package after another, each printed before it runs."""

import shlex
import subprocess
import sys
from collections.abc import Mapping


def as_arguments(options: Mapping[str, object]) -> list[str]:
    """Returns options as the words of a command."""
    return [f"--{option}={value}" for option, value in options.items()]


def run_command(name: str, **options: object) -> None:
    """Prints and runs `python -m geneformer_jax.<name>`; ends this program if it fails."""
    command = as_arguments(options)
    shown = " \\\n    ".join(map(shlex.quote, command))
    print(f"\n$ python -m geneformer_jax.{name} \\\n    {shown}", flush=True)
    status = subprocess.run([sys.executable, "-m", f"geneformer_jax.{name}", *command]).returncode
    if status:
        sys.exit(status)
