"""All commands as one program: names, completion, version, what to cite, JSON for programs."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import geneformer_jax as gf
from geneformer_jax.common.provenance import read_provenance
from tests.helpers.commands import COMMAND_FILES, assert_one_line, run_command
from tests.helpers.toy import toy_cells, toy_vocabulary

PROJECT = Path(__file__).resolve().parents[2]


def run_program(arguments, monkeypatch, capsys):
    """Runs `python -m geneformer_jax` with arguments; returns (status, output, error)."""
    monkeypatch.setattr(sys, "argv", ["geneformer-jax", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("geneformer_jax", run_name="__main__")
    return (ended.value.code, *capsys.readouterr())


@pytest.fixture
def inputs(tmp_path):
    """Counts of 30 cells, and a vocabulary, with endings as Windows programs write them."""
    toy_cells(30).write_h5ad(tmp_path / "cells.H5AD")
    toy_vocabulary().save(tmp_path / "vocabulary")
    return tmp_path


def tokenize(inputs, *more):
    names = {"counts": "cells.H5AD", "vocabulary": "vocabulary", "output": "store"}
    return [*(f"--{flag}={inputs / name}" for flag, name in names.items()), *more]


def test_a_program_runs_any_command():
    """Once as users run it, by the name that pip installs; the process is the command's own."""
    code = "import sys; from geneformer_jax.__main__ import main; sys.exit(main())"
    given = [sys.executable, "-c", code, "cluster", "--shares=2", "--", "build-vocabulary", "-h"]
    done = subprocess.run(given, cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert_one_line(done.stderr)
    assert "build-vocabulary" in done.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("tokenise", 'did you mean "tokenize"'),
        ("build-vocabulery", 'did you mean "build_vocabulary"'),
        ("--versoin", 'did you mean "--version"'),
        ("--completion=fish", "give bash or zsh"),
    ],
)
def test_what_is_mistyped_ends_with_one_line(given, words, monkeypatch, capsys):
    status, output, error = run_program([given], monkeypatch, capsys)
    assert (status, output) == (1, "")
    assert_one_line(error)
    assert words in error


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--checkpont=x", '(did you mean "checkpoint"?)'),
        ("--max-cells=3", 'did you mean "max_cells"'),
        ("--cells=a.h5ad --cells=b.h5ad", "--cells=a.h5ad --cells=b.h5ad: --cells is one path"),
    ],
)
def test_a_mistyped_flag_names_the_near_ones(given, words, monkeypatch, capsys):
    status, _, error = run_command("embed", given.split(), monkeypatch, capsys)
    assert status == 1
    assert_one_line(error)
    assert words in error


def test_every_command_tells_the_version_and_what_to_cite(monkeypatch, capsys):
    for run in (lambda given: run_program(given, monkeypatch, capsys),
                lambda given: run_command("embed", given, monkeypatch, capsys)):  # fmt: skip
        assert run(["--version"]) == (0, f"geneformer_jax {gf.__version__}\n", "")
        status, output, _ = run(["--cite"])
        assert (status, "10.1038/s41586-023-06139-9" in output) == (0, True)


def test_what_a_shell_makes_of_braces_is_read_as_one_list(inputs, monkeypatch, capsys):
    """Of --counts={a,b} it makes two flags, of which the last would count alone."""
    other = toy_cells(20, seed=1)
    other.obs_names = [f"other{name}" for name in other.obs_names]
    other.write_h5ad(inputs / "other.h5ad")
    given = [f"--counts={inputs}/other.h5ad", *tokenize(inputs)]
    run_command("tokenize", given, monkeypatch, capsys)
    assert len(gf.CellStore.open(inputs / "store").obs) == 50


def test_a_document_for_programs(inputs, monkeypatch, capsys):
    arguments = tokenize(inputs, "--json")
    for said in ("30 cells", "nothing to do"):
        status, output, error = run_command("tokenize", arguments, monkeypatch, capsys)
        told = json.loads(output)
        assert (status, told["status"], told["command"]) == (0, 0, "tokenize")
        assert (told["version"], told["error"]) == (gf.__version__, None)
        assert told["outputs"] == {"output": str(inputs / "store")}
        assert told["provenance"] == read_provenance(inputs / "store")
        # Beside them stands the progress of a log file.
        assert [line for line in told["messages"] if line not in error.splitlines()] == []
        assert said in "".join(told["messages"])
    # It is no option of the output: without it the same command finds its work done.
    status, output, _ = run_command("tokenize", arguments[:-1], monkeypatch, capsys)
    assert (status, "nothing to do" in output) == (0, True)


def test_a_document_tells_what_went_wrong(inputs, monkeypatch, capsys):
    (inputs / "cells.H5AD").write_bytes(b"none")
    status, output, error = run_command("tokenize", tokenize(inputs, "--json"), monkeypatch, capsys)
    told = json.loads(output)
    assert (status, told["status"]) == (1, 1)
    assert error.splitlines()[-1] == f"error: {told['error']}"
    assert (told["outputs"], told["provenance"]) == ({}, None)


def test_a_defect_leaves_a_document_too(inputs, monkeypatch, capsys):
    def fail(self):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("geneformer_jax.cells.store.building.run.TokenizeRun.prepare", fail)
    with pytest.raises(ZeroDivisionError):
        run_command("tokenize", tokenize(inputs, "--json"), monkeypatch, capsys)
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["error"]) == (1, "ZeroDivisionError: ours")


@pytest.fixture(scope="module")
def scripts():
    """Shell -> its script, as the program prints it."""
    made = {}
    for shell in ("bash", "zsh"):
        given = [sys.executable, "-m", "geneformer_jax", f"--completion={shell}"]
        made[shell] = subprocess.run(given, cwd=PROJECT, capture_output=True, text=True, check=True)
    return {shell: done.stdout for shell, done in made.items()}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", [*sorted(COMMAND_FILES), "--version", "--cite"]),
        ("to", ["tokenize"]),
        ("embed --mo", ["--mode="]),
        ("embed --mode=c", ["cell", "cls"]),
        ("embed --cells=x --fig", ["--figures"]),
        ("cluster --shares=4 -- to", ["tokenize"]),
        ("cluster --shares=4 -- tokenize --qua", ["--quality="]),
        ("tokenize --counts=pyproj", ["pyproject.toml"]),
        ("nonsense --c", []),
    ],
)
def test_bash_completes(line, expected, scripts):
    typed = f"geneformer-jax {line}"
    code = (
        f"{scripts['bash']}\nCOMP_LINE='{typed}' COMP_POINT={len(typed)}\n_geneformer_jax\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == sorted(expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("toke", "tokenize"),
        ("tokenize --qual", "--quality="),
        ("cluster --shares=4 -- embed --figu", "--figures"),
    ],
)
def test_zsh_completes(line, expected, scripts, tmp_path):
    """In a terminal of its own, as zsh completes nothing without one."""
    (tmp_path / ".zshrc").write_text(
        f"autoload -U compinit; compinit -u -D; PROMPT='> '; {scripts['zsh']}\n"
    )
    code = (
        "zmodload zsh/zpty; zpty z zsh -i; zpty -r z text '*> '; "
        f"zpty -w -n z $'geneformer-jax {line}\\t'; "
        f"zpty -r -t z text '*{expected}*'; for i in {{1..40}}; do "
        f"[[ $text == *'{expected}'* ]] && break; sleep 0.1; "
        "zpty -r -t z more && text+=$more; done; print -r -- $text"
    )
    done = subprocess.run(
        ["zsh", "-c", code], cwd=PROJECT, capture_output=True, text=True,
        env={"ZDOTDIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin",
             "TERM": "dumb"}, timeout=60,
    )  # fmt: skip
    assert expected in done.stdout
