"""The quickstart: the demonstration's counts, and what it says to do next."""

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scanpy
from absl import flags
from scipy import sparse

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from tests.helpers.commands import run_command
from tests.helpers.readme_inputs import real_cells, write_configs

LAUNCH = Path(__file__).resolve().parents[1] / "launch"


@pytest.fixture(scope="module")
def quickstart():
    """launch/quickstart.py as a module; its flags, at their defaults, make room for commands'."""
    path = LAUNCH / "quickstart.py"
    # As Python has it for a script.
    sys.path.insert(0, str(LAUNCH))
    spec = importlib.util.spec_from_file_location("quickstart_script", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["quickstart_script"] = module
    spec.loader.exec_module(module)
    for name in ("counts", "label", "output"):
        setattr(module, f"_{name.upper()}", SimpleNamespace(value=flags.FLAGS[name].default))
        delattr(flags.FLAGS, name)
    yield module
    del sys.modules["quickstart_script"]
    sys.path.remove(str(LAUNCH))


def logged_counts(seed: int = 0) -> tuple[np.ndarray, np.ndarray, sparse.csr_matrix]:
    rng = np.random.default_rng(seed)
    counts = rng.negative_binomial(0.3, 0.05, size=(50, 40))
    totals = counts.sum(axis=1) + rng.integers(1, 500, 50)
    logged = np.round(np.log1p(counts / totals[:, None] * 1e4), 3).astype(np.float32)
    return counts, totals, sparse.csr_matrix(logged)


def test_known_counts_come_back(quickstart):
    counts, totals, logged = logged_counts()
    recovered = quickstart.recover_counts(logged, totals)
    np.testing.assert_array_equal(recovered.toarray(), counts)


def test_values_of_no_integer_are_refused(quickstart):
    _, totals, logged = logged_counts()
    logged.data[7] += 0.004
    with pytest.raises(InputError, match=r"1 of .* not log"):
        quickstart.recover_counts(logged, totals)


def test_wrong_totals_are_refused(quickstart):
    _, totals, logged = logged_counts()
    with pytest.raises(InputError, match="not log"):
        quickstart.recover_counts(logged, totals * 1.02)


def test_values_too_coarse_to_name_one_count_are_refused(quickstart):
    totals = np.array([10_000_000])
    logged = sparse.csr_matrix(np.round(np.log1p([[5_000_000 / 1e3]]), 3))
    with pytest.raises(InputError, match="more than one integer"):
        quickstart.recover_counts(logged, totals)


def test_more_counts_than_the_total_are_refused(quickstart):
    logged = sparse.csr_matrix(np.round(np.log1p([[4000.0, 4000.0, 4000.0]]), 3))
    with pytest.raises(InputError, match="more counts than the cell has"):
        quickstart.recover_counts(logged, np.array([10.0]))


def test_demo_cells_are_the_original_counts(quickstart):
    cells = quickstart.demo_cells()
    assert cells.shape == (700, 765)
    assert cells.X.dtype == np.int32
    assert cells.X.data.min() >= 1
    assert cells.obs["bulk_labels"].nunique() == 10
    assert "CD79A" in cells.var_names
    # Each stored value is the rounded logarithm of the recovered count, and of no other.
    stored = scanpy.datasets.pbmc68k_reduced().raw.X.toarray()
    per_10k = cells.X.toarray() / cells.obs["n_counts"].to_numpy(float)[:, None] * 1e4
    np.testing.assert_allclose(np.log1p(per_10k), stored, atol=5.1e-4)
    assert np.all(cells.X.sum(axis=1).A1 <= cells.obs["n_counts"])


def test_label_is_the_first_column_of_categories(quickstart):
    obs = pd.DataFrame(
        {
            "n_counts": [1.0, 2.0, 3.0],
            "sample": ["x", "x", "x"],
            "kind": pd.Categorical(["a", "b", None]),
            "other": ["p", "q", "q"],
        }
    )
    assert quickstart.choose_label(obs) == "kind"
    assert quickstart.choose_label(obs[["n_counts", "sample"]]) == ""


def test_states_are_the_two_commonest_labels(quickstart):
    labels = pd.Series(["b", "a", None, "b", "c", "a", "b", *[""] * 5])
    assert quickstart.commonest_states(labels) == ("a", "b")
    assert quickstart.commonest_states(pd.Series(["b", "b", None])) is None


ACCURACY = {"accuracy": 0.6, "majority": 0.3, "shuffled": 0.3, "cells": 700}


def write_results(folder: Path, loss: float, components: float, ours: str, rate: float) -> None:
    """Results of a quickstart, as far as its last lines read them."""
    texts = {
        "model/held_out.csv": f"method,loss,accuracy\nmodel,{loss},.1\ngene at rank,6.0,.005\n",
        "embeddings.provenance.json": json.dumps({"counts": {"label_accuracy": {
            "kind": {"X_geneformer": ACCURACY, "PCA": {**ACCURACY, "accuracy": components}}
        }}}),
        "classifier/results.csv": (
            f"method,accuracy,accuracy_low,accuracy_high\nours,{ours}\nSVM,.7,,\n"
        ),
        "screen/provenance.json": json.dumps({"counts": {"states": {"start": "s", "goal": "g"}}}),
        "screen/statistics/goal_state_shift.csv": f"Gene,Matched_FDR\nA,{rate}\nB,0.9\nC,\n",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_what_the_numbers_say_follows_from_them(quickstart, tmp_path):
    write_results(tmp_path, loss=5.0, components=0.5, ours=".9,.8,1", rate=0.01)
    won = list(quickstart.findings(tmp_path))
    words = ["has learned", "hold these labels", "beats them all", '"s" towards "g"']
    assert [word in finding for word, finding in zip(words, won, strict=True)] == [True] * 4
    assert "0.5% at 6.00" in won[0] and "PCA 50.0%" in won[1] and "1 of 2" in won[3]
    assert "as well as the components" not in won[1]
    write_results(tmp_path, loss=5.0, components=0.61, ours=".9,.8,1", rate=0.01)
    # Two errors of the difference of two accuracies of .6 in 700 cells: 2 sqrt(2 .6 .4 / 700).
    level = list(quickstart.findings(tmp_path))[1]
    assert "components: differences below 5.2% say nothing" in level
    write_results(tmp_path, loss=7.0, components=0.8, ours=".5,.4,.6", rate=0.2)
    lost = list(quickstart.findings(tmp_path))
    words = ["NOT learned", "embeddings LOSE", "LOSES to SVM", "0 of 2. Nothing can be said"]
    assert [word in finding for word, finding in zip(words, lost, strict=True)] == [True] * 4


def test_a_folder_of_another_file_is_not_mixed_with(quickstart, tmp_path):
    first, second = tmp_path / "a" / "c.h5ad", tmp_path / "b" / "c.h5ad"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text(path.parent.name)
    quickstart.claim(tmp_path / "out", first)
    quickstart.claim(tmp_path / "out", first)
    with pytest.raises(InputError, match=r"made from another c\.h5ad; remove it"):
        quickstart.claim(tmp_path / "out", second)


@pytest.fixture
def ran(quickstart, tmp_path, monkeypatch):
    """The commands that the quickstart runs in a folder of the test, only noted."""
    monkeypatch.chdir(tmp_path)
    made, noted = tmp_path / "made", {}
    (made / "vocabulary").mkdir(parents=True)
    write_results(made, loss=5.0, components=0.5, ours=".9,.8,1", rate=0.01)
    obs = pd.DataFrame({"kind of cell": ["a b", "a b", "c, d"]}, index=["x", "y", "z"])
    monkeypatch.setattr(quickstart, "open_counts", lambda counts: SimpleNamespace(obs=lambda: obs))
    monkeypatch.setattr(
        quickstart, "run_command", lambda name, **options: noted.update({name: options})
    )
    return noted


def lines_to_paste(shown: str) -> dict[str, list[str]]:
    """Command -> its arguments, of the lines after the heading; all call this interpreter."""
    found = {}
    for line in shown.partition("What to do next")[2].splitlines():
        if not line.startswith(("#", ";")):
            python, _, module, *arguments = shlex.split(line)
            assert Path(python).resolve() == Path(sys.executable).resolve()
            found[module.partition(".")[2]] = arguments
    return found


@pytest.mark.parametrize("label", ["kind of cell", ""])
def test_the_lines_to_go_on_with_name_what_was_made(
    quickstart, ran, label, tmp_path, monkeypatch, capsys
):
    counts = tmp_path / "my cells.h5ad"
    monkeypatch.setattr(quickstart, "prepare", lambda: (counts, tmp_path / "made", label))
    quickstart.main()
    shown = capsys.readouterr().out
    assert "It beats them all." in " ".join(shown.split())
    lines = lines_to_paste(shown)
    assert set(lines) == {"embed", "perturb", ""} | ({"predict"} if label else set())
    options = {name: dict(word.split("=", 1) for word in words) for name, words in lines.items()}
    assert options.pop("") == {}
    model = str(ran["pretrain"]["workdir"])
    for name, given in options.items():
        assert given["--cells"] == str(counts)
        if name != "predict":
            assert given["--checkpoint"] == model
    if not label:
        assert "finetune" not in ran and "perturb" not in ran
        return
    finetune, screen = ran["finetune"], ran["perturb"]
    assert finetune["config.data.store"] == ran["tokenize"]["output"] == screen["cells"]
    assert finetune["config.task.label"] == label == ran["tokenize"]["obs"] == screen["states"]
    assert str(finetune["checkpoint"]) == str(screen["checkpoint"]) == model
    assert (screen["start"], screen["goal"]) == ("c, d", "a b")
    assert options["predict"]["--checkpoint"] == str(finetune["workdir"])


@pytest.mark.slow
@pytest.mark.reference_data
def test_its_model_of_symbols_is_used_as_it_says_and_on_cells_with_ids_too(
    quickstart, data_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path / "configs")

    def run(name, *arguments):
        status, output, error = run_command(name, list(arguments), monkeypatch, capsys)
        assert status == 0, f"{name} {arguments}\n{output}\n{error}"
        return output

    monkeypatch.setitem(quickstart._FINETUNING, "config.steps", 4)

    def in_process(name, **options):
        run(name, *quickstart.as_arguments(options))

    monkeypatch.setattr(quickstart, "run_command", in_process)
    quickstart.main()
    lines = lines_to_paste(capsys.readouterr().out)
    del lines[""]
    for name, arguments in lines.items():
        shown = run(name, *arguments, *(["--genes=CD74"] if name == "perturb" else []))
        assert "gene ids in index" in shown
    others, _ = real_cells(data_dir / "cells" / "pbmc3k.h5ad")
    others[:24].copy().write_h5ad("others.h5ad")
    for name, output in (("embed", "e.h5ad"), ("predict", "p.h5ad"), ("perturb", "shifts")):
        checkpoint = lines[name][0]
        arguments = [checkpoint, "--cells=others.h5ad", f"--output={output}"]
        shown = run(name, *arguments, *(["--genes=CD74"] if name == "perturb" else []))
        assert "gene ids in gene_symbol" in shown
    read = json.loads(Path("shifts/provenance.json").read_text())["counts"]["counts_read"]
    known = set(GeneVocabulary.load(next(Path("quickstart").glob("*/vocabulary"))).gene_ids)
    assert read["gene_column"] == "gene_symbol"
    assert read["distinct_genes"] == len(known & set(others.var["gene_symbol"])) > 700
