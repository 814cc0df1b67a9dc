"""Every command: a help text for newcomers, and one line for what is mistyped."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from geneformer_jax.common.command_help import keys_of
from geneformer_jax.finetuning.classification.config import TaskConfig
from geneformer_jax.finetuning.config import FinetuneConfig, MultitaskConfig
from geneformer_jax.training.config import PretrainConfig
from tests.helpers.commands import COMMAND_FILES, assert_one_line, run_command

PROJECT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(COMMAND_FILES)
# What the groups of command_line define.
GROUPS = {
    "model_flags()": ("checkpoint", "vocabulary", "base"),
    "cell_flags()": ("cells", "filter", "max_cells", "seed"),
    "device_flags()": ("precision", "attention", "tokens_per_device"),
}
NEEDED = {
    "attend": ["checkpoint", "cells", "output", "genes"],
    "build_vocabulary": ["counts", "output"],
    "cluster": ["shares"],
    "convert": ["source", "target"],
    "embed": ["checkpoint", "cells", "output"],
    "explore": ["folder"],
    "finetune": ["config", "workdir"],
    "perturb": ["checkpoint", "cells", "output"],
    "predict": ["checkpoint", "cells", "output"],
    "pretrain": ["config", "workdir"],
    "tokenize": ["counts", "vocabulary", "output"],
    "transfer": ["checkpoint", "reference", "query", "label", "output"],
    "validate": ["checkpoint", "cells", "output", "perturbation", "control"],
}
CONFIG = PROJECT / "configs" / "quickstart.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_the_command_and_each_flag(name, monkeypatch, capsys):
    status, output, _ = run_command(name, ["--help"], monkeypatch, capsys)
    assert status == 0
    assert f"python -m geneformer_jax.{name} " in output, "no example command"
    source = COMMAND_FILES[name].read_text()
    defined = [
        line.split('"')[1]
        for line in source.replace("(\n    ", "(").splitlines()
        if "DEFINE_" in line and '"' in line
    ]
    defined += [name for group, names in GROUPS.items() if group in source for name in names]
    assert defined
    for flag in [*defined, "json"]:
        assert f"--{flag}" in output
    # Those that must be given come first; each flag's name is followed by what it means.
    needed, _, others = output.partition("\nFlags:\n")
    needed = needed.partition("\nNeeded:\n")[2]
    assert NEEDED[name] == re.findall(r"^  --(\w+)", needed, re.M)
    others, _, statuses = others.partition("\nExit status: ")
    assert re.findall(r"(?:^|; )(\d+)\s", statuses) == ["0", "1", "130", "141"]
    lines = [*needed.splitlines(), *others.partition("\nConfiguration:")[0].splitlines()]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("  --"):
            assert following.startswith("      ") and following.strip()


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("pretrain", ["optimizer.learning_rate peak (0.001)", "model.heads N; the head size"]),
        ("finetune", ["optimizer.learning_rate peak (5e-05)", "task.label cell tasks: obs column"]),
        ("finetune", ["targets.numbers obs columns of numbers", "search.seed of the draws (0)"]),
    ],
)
def test_help_explains_the_configuration(name, lines, monkeypatch, capsys):
    _, output, _ = run_command(name, ["--help"], monkeypatch, capsys)
    told = re.sub(r" +", " ", output.partition("\nConfiguration:")[2])
    assert [line for line in lines if f"\n {line}" not in told] == []


@pytest.mark.parametrize(
    ("file", "name"),
    [("quickstart", "pretrain"), ("finetune_cells", "finetune"), ("finetune_targets", "finetune")],
)
def test_help_leaves_out_no_key_of_a_configuration(file, name, monkeypatch, capsys):
    config = runpy.run_path(str(PROJECT / "configs" / f"{file}.py"))["get_config"]()
    _, output, _ = run_command(name, ["--help"], monkeypatch, capsys)
    told = set(re.findall(r"^  ([a-z_0-9.]+) ", output.partition("\nConfiguration:")[2], re.M))
    assert set(dotted_keys(config, told)) - told == set()


def dotted_keys(section, told, prefix=""):
    """The keys below a section; what is told of as one value has none."""
    for key, value in section.items():
        if hasattr(value, "keys") and prefix + key not in told:
            yield from dotted_keys(value, told, f"{prefix}{key}.")
        else:
            yield prefix + key


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig, TaskConfig, MultitaskConfig])
def test_every_key_of_a_configuration_has_a_meaning(kind):
    assert [key.name for key in keys_of(kind) if not key.meaning] == []


@pytest.mark.parametrize("way", ["--help", "-help", "-h", "--helpfull", "-helpfull", "--helpshort"])
def test_help_is_given_however_it_is_asked_for(way, monkeypatch, capsys):
    status, output, error = run_command("convert", ["--source=x", way], monkeypatch, capsys)
    assert (status, error) == (0, "")
    assert "Needed:\n  --source" in output


def test_a_reader_that_leaves_early_is_no_error():
    """As in `--help | head -1`, with an output longer than the buffers of Python."""
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [sys.executable, "-m", "geneformer_jax.perturb", "--help"],
        cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE,
    ) as command:  # fmt: skip
        os.close(writing)
        assert command.stderr.read() == b""
    assert command.returncode == 141


def test_all_commands_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["geneformer_jax"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("geneformer_jax", run_name="__main__")
    assert ended.value.code == 0
    listed = dict(re.findall(r"^  (\w+) +(\S.*)$", capsys.readouterr().out, re.M))
    assert sorted(listed) == COMMANDS
    for name, about in listed.items():
        source = COMMAND_FILES[name].read_text()
        assert source.startswith(f'"""{about}')


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_large(name):
    """All that is slow to start waits until the flags are known to be right."""
    code = (
        f"import sys, runpy; sys.argv = ['{name}', '--help']\n"
        f"try: runpy.run_module('geneformer_jax.{name}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit: print(*sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()[-1].split()
    assert {"numpy", "pandas", "pyarrow", "scipy", "jax"} & set(modules) == set()
    others = [each for each in modules if each.split(".")[0] not in sys.stdlib_module_names]
    # Python's own, some 180, are of its version, and of what absl of one version or another takes.
    assert len(others) < 75


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


def test_the_folder_that_one_is_in_is_no_new_output(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for given in (".", "./"):
        arguments = ["--counts=x", "--vocabulary=y", f"--output={given}"]
        status, _, error = run_command("tokenize", arguments, monkeypatch, capsys)
        assert (status, f"--output={tmp_path} is the folder that you are in" in error) == (1, True)
        assert_one_line(error)


@pytest.mark.parametrize(
    ("name", "flag"),
    [("embed", "output"), ("tokenize", "output"), ("tokenize", "report"), ("pretrain", "workdir")],
)
def test_outputs_are_not_written_to_urls(name, flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [f"--{needed}=x" for needed in NEEDED[name] if needed not in (flag, "config")]
    config = [f"--config={CONFIG}"] if name == "pretrain" else []
    arguments = [*given, *config, f"--{flag}=s3://bucket/made"]
    status, _, error = run_command(name, arguments, monkeypatch, capsys)
    assert (status, f"--{flag}=s3://bucket/made is a URL" in error) == (1, True), error
    assert_one_line(error)
    assert not any(tmp_path.iterdir())
