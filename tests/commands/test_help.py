"""Every command: a help text for newcomers, and one line for what is mistyped."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import assert_one_line, run_command

PROJECT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    path.stem for path in (PROJECT / "geneformer_jax").glob("*.py") if path.name != "__init__.py"
)
# What the groups of command_line define.
GROUPS = {
    "model_flags()": ("checkpoint", "vocabulary"),
    "cell_flags()": ("cells", "filter", "max_cells", "seed"),
    "device_flags()": ("precision", "attention", "tokens_per_device"),
}
CONFIG = PROJECT / "configs" / "quickstart.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_the_command_and_each_flag(name, monkeypatch, capsys):
    status, output, _ = run_command(name, ["--help"], monkeypatch, capsys)
    assert status == 0
    assert f"python -m geneformer_jax.{name} " in output, "no example command"
    source = (PROJECT / "geneformer_jax" / f"{name}.py").read_text()
    defined = [
        line.split('"')[1]
        for line in source.replace("(\n    ", "(").splitlines()
        if "DEFINE_" in line and '"' in line
    ]
    defined += [name for group, names in GROUPS.items() if group in source for name in names]
    assert defined
    for flag in defined:
        assert f"--{flag}" in output
    # Each flag's name is followed by what it means.
    lines = output[output.index("Flags:") :].splitlines()[1:]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("  --"):
            assert following.startswith("      ") and following.strip()


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_ends_with_one_line(name, monkeypatch, capsys):
    status, _, error = run_command(name, ["--no_such_flag=1"], monkeypatch, capsys)
    assert status == 1
    assert_one_line(error)
    assert "no_such_flag" in error


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_flag_ends_with_one_line(name, monkeypatch, capsys):
    status, _, error = run_command(name, [], monkeypatch, capsys)
    assert status == 1
    assert_one_line(error)
    assert "must be given; see --help" in error


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.optimizer.learning_rat=1", ["learning_rat", 'did you mean "learning_rate"']),
        ("--config.optimiser.learning_rate=1", ["optimiser", 'did you mean "optimizer"']),
        ("--config.stepz=1", ["stepz", 'did you mean "steps"']),
        ("--config.qqqqqqq=1", ["qqqqqqq", "no such key"]),
        ("--config.steps=many", ["--config.steps", "int", "many"]),
        ("--config.optimizer.learning_rate=high", ["learning_rate", "float", "high"]),
        ("--config.optimizer=1", ["--config.optimizer", "not a dict"]),
    ],
)
def test_a_wrong_config_key_ends_with_one_line(argument, words, monkeypatch, capsys):
    arguments = [f"--config={CONFIG}", argument, "--workdir=nowhere"]
    status, _, error = run_command("pretrain", arguments, monkeypatch, capsys)
    assert status == 1
    assert_one_line(error)
    for each in words:
        assert each in error


def test_a_missing_config_file_ends_with_one_line(monkeypatch, capsys, tmp_path):
    arguments = [f"--config={tmp_path / 'none.py'}", f"--workdir={tmp_path / 'run'}"]
    status, _, error = run_command("pretrain", arguments, monkeypatch, capsys)
    assert status == 1
    assert_one_line(error)


def test_a_command_is_a_process_of_its_own():
    """Once as users run it: a process of its own, its exit status and its streams."""
    done = subprocess.run(
        [sys.executable, "-m", "geneformer_jax.embed", "--nonsense"],
        cwd=PROJECT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert_one_line(done.stderr)


def test_importing_the_package_starts_no_jax():
    code = (
        "import sys, geneformer_jax as gf; print(gf.__version__);"
        "print([name for name in ('jax', 'numpy', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    version, heavy = done.stdout.splitlines()
    assert version.count(".") == 2
    assert heavy == "[]"
