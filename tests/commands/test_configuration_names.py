"""--config: a file, or the name of a configuration that comes with the package."""

import sys
from pathlib import Path

import pytest

from geneformer_jax.common.commands.configurations import configurations, find_configuration
from geneformer_jax.common.errors import InputError
from tests.helpers.commands import assert_one_line, run_command

SHIPPED = Path(__file__).resolve().parents[2] / "configs"


def test_all_that_come_with_the_package_have_names():
    assert sorted(configurations().values()) == sorted(SHIPPED.rglob("*.py"))


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("quickstart", "quickstart.py"),
        ("quickstart.py", "quickstart.py"),
        ("configs/quickstart.py", "quickstart.py"),
        ("./configs/tasks/dosage.py", "tasks/dosage.py"),
        ("tasks/dosage", "tasks/dosage.py"),
    ],
)
def test_a_name_is_found_where_there_is_no_such_file(given, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # As `make quickstart` makes it.
    (tmp_path / "quickstart").mkdir()
    assert find_configuration(given) == str(SHIPPED / file)
    assert find_configuration(f"{given}:large") == f"{SHIPPED / file}:large"


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").touch()
    assert find_configuration("configs/quickstart.py") == "configs/quickstart.py"
    assert find_configuration("~/configs/quickstart.py") == f"{tmp_path}/configs/quickstart.py"
    assert find_configuration("quickstart") == str(SHIPPED / "quickstart.py")


def test_a_typo_names_the_near_ones_and_all():
    with pytest.raises(InputError, match=r'did you mean "quickstart"') as raised:
        find_configuration("quikstart")
    assert all(name in str(raised.value) for name in configurations())


@pytest.mark.parametrize(
    "given", [["--config", "quikstart"], ["--config=quikstart"], ["--config="]]
)
def test_a_command_says_so_in_one_line(given, tmp_path, monkeypatch, capsys):
    arguments = [*given, f"--workdir={tmp_path}"]
    status, _, error = run_command("pretrain", arguments, monkeypatch, capsys)
    assert (status, "pretrain_v1_10m" in error) == (1, True)
    assert_one_line(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import no_such_package", "no_such_package"),
        ("x = 1", "get_config()"),
        ("def get_config():\n    raise RuntimeError('boom')", "boom"),
        ("def get_config():\n    return 1 + 'a'", "unsupported operand"),
    ],
)
def test_a_file_that_does_not_run_ends_with_one_line(text, words, tmp_path, monkeypatch, capsys):
    # ml_collections gives every file the same name: another test's would leave its get_config.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    path = tmp_path / "own.py"
    path.write_text(text)
    arguments = [f"--config={path}", "--config.steps=1", f"--workdir={tmp_path}"]
    status, _, error = run_command("pretrain", arguments, monkeypatch, capsys)
    assert (status, words in error, "Traceback" in error) == (1, True, False), error
    assert_one_line(error)
