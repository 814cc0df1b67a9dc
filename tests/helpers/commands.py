"""Runs commands in the process of the tests, which is much quicker than starting one."""

import runpy
import sys
from pathlib import Path

import pytest
from absl import flags

_PACKAGE = Path(__file__).resolve().parents[2] / "geneformer_jax"
# Name of each command -> where it is.
COMMAND_FILES = {path.stem: path for path in _PACKAGE.glob("[a-z]*.py")}
COMMAND_FILES |= {path.parent.name: path for path in _PACKAGE.glob("*/__main__.py")}
# Of the flags that appear while a command runs, theirs stay: a library is imported once.
_LIBRARIES = ("absl.logging", "array_record.", "grain.", "orbax.")


def run_command(name: str, arguments: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    """Runs a command in this process; returns (exit status, standard output, standard error)."""
    module = f"geneformer_jax.{name}"
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    before = set(flags.FLAGS)
    was_parsed = flags.FLAGS.is_parsed()
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        for flag in set(flags.FLAGS) - before:
            if not flags.FLAGS.find_module_defining_flag(flag).startswith(_LIBRARIES):
                delattr(flags.FLAGS, flag)
        if not was_parsed:
            flags.FLAGS.unparse_flags()
    output, error = capsys.readouterr()
    return ended.value.code, output, error


def assert_one_line(error: str) -> None:
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
