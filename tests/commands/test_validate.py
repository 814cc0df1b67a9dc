"""The validate command: what it writes, going on after a kill, and what it refuses."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from geneformer_jax.model import pretrained
from geneformer_jax.perturbation.validation import output as output_files
from geneformer_jax.perturbation.validation import prepare, run
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.pages import assert_files_are_linked, read_page
from tests.helpers.perturb_runs import killed_at_the_second_part
from tests.helpers.toy import toy_model
from tests.helpers.toy_screens import CONTROL, TARGETS, gene_id, toy_screen

TABLES = ["agg_results.csv", "drf.csv", "left_out.csv", "perturbations.csv", "results.csv",
          "summary.csv"]  # fmt: skip
FIGURES = [f"{name}.{kind}" for name in ("directions", "scores") for kind in ("pdf", "png")]


@pytest.fixture(scope="module")
def model():
    return toy_model(positions=160, layers=1, initializer_range=0.2)


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    path = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    cells = toy_screen()
    cells.obs.iloc[-3:, 0] = [f"{gene_id(2)}+{gene_id(5)}"] * 3
    cells.write_h5ad(path)
    return path


@pytest.fixture
def validate(model, screen, tmp_path, monkeypatch, capsys):
    """The command in small parts; each call returns (exit status, output, error)."""
    monkeypatch.setattr(pretrained, "load_model", lambda path, quantize=None: model)
    monkeypatch.setattr(run, "CELLS_PER_PART", {"cpu": 20})
    in_small_parts = functools.partial(prepare.make_plan, tokens_per_part=20_000)
    monkeypatch.setattr(prepare, "make_plan", in_small_parts)

    def call(*arguments: str) -> tuple[int, str, str]:
        usual = {"--checkpoint": "toy", "--cells": screen, "--output": tmp_path / "out",
                 "--perturbation": "target", "--control": CONTROL, "--edited_cells": 24,
                 "--hidden_layer": 0, "--like_rank": 1}  # fmt: skip
        given = [argument.partition("=")[0] for argument in arguments]
        usual = [f"{name}={value}" for name, value in usual.items() if name not in given]
        return run_command("validate", [*usual, *arguments], monkeypatch, capsys)

    return call


def test_a_killed_run_goes_on_to_the_tables_of_a_whole_one(validate, tmp_path, monkeypatch):
    with killed_at_the_second_part():
        assert validate()[0] == 130
    assert [path.name for path in tmp_path.iterdir()] == ["out.parts"]
    status, _, error = validate("--edited_cells=30")
    assert status == 1 and "is of a run with" in error
    status, output, error = validate()
    assert status == 0, error
    out, whole = tmp_path / "out", tmp_path / "whole"
    check_output(out, output)
    status, output, _ = validate()
    assert status == 0 and "nothing to do" in output
    status, _, error = validate("--like_rank=2")
    assert status == 1 and "was not written by this command" in error
    monkeypatch.setattr(output_files, "draw", lambda validation: [])
    assert validate(f"--output={whole}")[0] == 0
    for name in TABLES:
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def check_output(out: Path, output: str) -> None:
    """Tables, figures, provenance and a page are there, and agree with each other."""
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted([*TABLES, *FIGURES, "provenance.json", "report.html"])
    assert "perturbations left out, several genes at once: 1" in output
    assert "Nothing" in output
    results = pd.read_csv(out / "results.csv")
    assert results["perturbation"].tolist() == [gene_id(target) for target in TARGETS]
    found = pd.read_csv(out / "summary.csv").set_index("protocol")["prediction"]
    assert found["reciprocal_rank"] == pytest.approx(results["reciprocal_rank"].mean())
    page = read_page(out / "report.html")
    assert_files_are_linked(page, out, sorted([*TABLES, *FIGURES]))
    assert page.rows[1][0] == "discrimination_score_cosine" and len(page.images) == 2
    counts = json.loads((out / "provenance.json").read_text())["counts"]
    assert counts["perturbations"] == len(TARGETS) and counts["control_cells"] == 120


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--control=ctrl"], f'it has "{CONTROL}", a usual name of controls'),
        (["--min_cells=41"], "the largest has 40"),
        (["--edit=remove"], "--edit is"),
        (["--filter=target:non-targeting"], "needs 2 perturbations"),
        (["--cells=none.h5ad"], "does not exist"),
        (["--hidden_layer=-9"], "--hidden_layer"),
    ],
)
def test_bad_input_is_told_in_one_line(validate, tmp_path, arguments, words):
    status, _, error = validate(*arguments)
    assert status == 1
    assert_one_line(error)
    assert words in error and not (tmp_path / "out").exists()


def test_screens_are_refused_before_jax_is_loaded(screen, tmp_path):
    """Names that match no gene, and one cell for each perturbation."""
    names = toy_screen()
    names.obs["drug"] = names.obs["target"].map({CONTROL: "DMSO"}).fillna("doxorubicin")
    names.obs["few"] = [CONTROL] * 120 + [gene_id(n) for n in range(150)] + ["x"] * 170
    names.obs["few"] = names.obs["few"].where(names.obs["few"] != "x", None)
    names.var["gene_symbol"] = [f"GENE{n}" for n in range(150)]
    names.write_h5ad(tmp_path / "screen.h5ad")
    script = (
        "import sys, pathlib\n"
        "from geneformer_jax.cells.counts.options import CountOptions\n"
        "from geneformer_jax.perturbation.validation.config import ValidationOptions\n"
        "from geneformer_jax.perturbation.validation.screen.screen_file import require_screen\n"
        "for column, control in (('drug', 'DMSO'), ('few', 'non-targeting')):\n"
        "    try:\n"
        "        options = ValidationOptions(column, control)\n"
        "        require_screen(sys.argv[1], options, CountOptions())\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
        "assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "screen.h5ad")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drugs, few = done.stdout.splitlines()
    assert 'such as "doxorubicin" (names no known gene): label cells by gene symbols' in drugs
    assert "fewer than 10 cells): the largest has 1: give more cells" in few
