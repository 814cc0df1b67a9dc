"""The finetune command on small stores: cells, genes, several targets, and what it refuses."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.interop.load import load_model
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.toy import GENES, make_store, toy_cells, toy_vocabulary

TINY = [
    "--config.model.layers=1",
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.model.feed_forward=16",
    "--config.model.positions=256",
    "--config.model.initializer_range=0.1",
    "--config.mesh.data=1",
    "--config.data.max_buckets=1",
    "--config.optimizer.warmup_steps=2",
    "--config.optimizer.learning_rate=0.003",
]
PACKED = [
    "--config.data.packing",
    "--config.data.cells_per_batch=0",
    "--config.data.tokens_per_batch=4096",
]
LORA = ["--config.tuning.lora_rank=2"]


@pytest.fixture(scope="module")
def rich_store(tmp_path_factory):
    """A store with classes, numbers and donors; some cells lack an age."""
    adata = toy_cells(96)
    rng = np.random.default_rng(0)
    adata.obs["age"] = np.where(adata.obs["kind"] == "b", 60.0, 30.0) + rng.normal(size=96)
    adata.obs.loc[adata.obs.index[:5], "age"] = np.nan
    adata.obs["donor"] = [f"d{i % 6}" for i in range(96)]
    adata.obs["same"] = "x"
    folder = tmp_path_factory.mktemp("rich") / "store"
    return make_store(folder, adata, toy_vocabulary(), obs=("kind", "age", "donor", "same"))


@pytest.fixture(scope="module")
def gene_table(tmp_path_factory):
    path = tmp_path_factory.mktemp("genes") / "genes.tsv"
    ids = [f"ENSG{i:011d}" for i in range(GENES)]
    table = pd.DataFrame(
        {"gene": ids, "class": ["low" if i < 75 else "high" for i in range(GENES)]}
    )
    table.iloc[::3].to_csv(path, sep="\t", index=False)
    return path


def finetune(arguments, monkeypatch, capsys):
    return run_command("finetune", [arguments[0], *TINY, *arguments[1:]], monkeypatch, capsys)


def test_cells_are_classified_and_the_run_is_read_again(rich_store, tmp_path, monkeypatch, capsys):
    arguments = [
        "--config=configs/finetune_cells.py",
        f"--config.data.store={rich_store.folder}",
        "--config.task.label=kind",
        "--config.task.group=donor",
        # Enough for the folds of any release of scikit-learn.
        "--config.epochs=10",
        f"--workdir={tmp_path / 'run'}",
    ]
    status, output, error = finetune(arguments, monkeypatch, capsys)
    assert status == 0, error
    results = pd.read_csv(tmp_path / "run" / "results.csv")
    accuracies = results.set_index("method")["accuracy"]
    assert accuracies.iloc[0] > accuracies["commonest class"] + 0.1
    assert f"results: {tmp_path / 'run'}" in output
    check_verdict(output, results)
    assert {"commonest class", "SVM, ranks"} <= set(results["method"])
    assert (tmp_path / "run" / "loss.png").is_file()
    split = pd.read_parquet(tmp_path / "run" / "split.parquet").set_index("id")
    donors = rich_store.obs["donor"].reindex(split.index)
    assert (split.groupby(donors.astype(str).to_numpy())["side"].nunique() == 1).all()
    (fold,) = (tmp_path / "run" / "networks").glob("*/fold_0")
    assert f"model: {fold}" in output
    assert load_model(fold).head.labels == ("a", "b")
    before = {path: path.stat().st_mtime_ns for path in fold.rglob("*")}
    status, _, error = finetune(arguments, monkeypatch, capsys)
    assert status == 0, error
    assert {path: path.stat().st_mtime_ns for path in fold.rglob("*")} == before
    changed = [*arguments, "--config.seed=7"]
    status, _, error = finetune(changed, monkeypatch, capsys)
    assert (status, "seed = 42, not 7" in error) == (1, True)
    assert_one_line(error)


def check_verdict(output: str, results: pd.DataFrame) -> None:
    """Compares the numbers of the verdict with those of the tables, on disk and printed."""
    (said,) = re.findall(r"verdict: no pretraining, 1 layer (.*)", output)
    rows = results[results["per"] == "cell"].set_index("method")
    first, classical = rows.iloc[0], rows.loc[["SVM, ranks", "random forest, ranks"], "accuracy"]
    numbers = [first[name] for name in ("accuracy", "accuracy_low", "accuracy_high")]
    numbers += [rows.loc["commonest class", "accuracy"], rows["accuracy"].iloc[1:].max()]
    assert re.findall(r"\d\.\d{3}", said) == [f"{number:.3f}" for number in numbers]
    assert classical.max() <= numbers[-1]
    (printed,) = re.findall(r"no pretraining, 1 layer +cell .*", output)
    shown = [float(number) for number in re.findall(r"\d\.\d+", printed)]
    measures = first[["auc", "accuracy", "macro_f1"]].astype(float)
    assert shown == pytest.approx(measures.tolist(), abs=1e-5)


@pytest.mark.slow
def test_several_targets_are_learned_and_their_head_is_refused_for_other_labels(
    rich_store, gene_table, tmp_path, monkeypatch, capsys
):
    first = tmp_path / "cells"
    arguments = ["--config=configs/finetune_targets.py", f"--config.data.store={rich_store.folder}"]
    classes = ["--config.targets.classes=kind", "--config.targets.numbers=age"]
    longer = ["--config.epochs=12", "--config.optimizer.learning_rate=0.02", f"--workdir={first}"]
    status, _, error = finetune([*arguments, *classes, *longer], monkeypatch, capsys)
    assert status == 0, error
    scores = pd.read_csv(first / "results.csv").set_index(["target", "fold"])
    assert scores.loc[("kind", "0"), "accuracy"] > 0.7
    assert {"r2", "mean_absolute_error"} <= set(scores)
    assert scores.loc[("kind", "0"), "accuracy_of_commonest"] < 0.7
    assert (first / "loss.png").is_file()
    assert json.loads((first / "provenance.json").read_text())["command"] == "finetune"

    genes = [
        "--config=configs/finetune_genes.py",
        f"--config.data.store={rich_store.folder}",
        f"--config.task.genes={gene_table}",
    ]
    status, _, error = finetune(
        [*genes, f"--checkpoint={first}/networks/Geneformer/fold_0", f"--workdir={tmp_path / 'g'}"],
        monkeypatch,
        capsys,
    )
    assert status == 1
    assert "has a cell_classifier for a, b, age" in error
    assert_one_line(error)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.task.label=kin"], 'did you mean "kind"'),
        (["--config.task.label=same"], "class"),
        (["--config.task.label=kind", "--config.tuning.freeze_layers=2"], "the model has 1 layers"),
        (["--config.task.label=kind", "--config.head.pooling=men"], "choose one of first, mean"),
        (["--config.task.label=kind", "--config.head.poling=mean"], 'pooling"'),
        (["--config.task.label=kind", "--checkpoint=nowhere"], "nowhere"),
        (["--config.task.label=kind", *PACKED], "packing is for pretraining"),
        (
            [
                "--config.task.label=kind",
                "--config.tuning.lora_rank=2",
                "--config.tuning.head_only",
            ],
            "lora_rank",
        ),
        (
            [
                "--config.task.label=kind",
                "--config.tuning.lora_rank=2",
                "--config.tuning.lora_targets=keys",
            ],
            'did you mean "key"',
        ),
        (["--config.task.label=kind", "--quantize=nf4"], "--quantize=nf4 without --checkpoint"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    rich_store, tmp_path, monkeypatch, capsys, flags, words
):
    arguments = ["--config=configs/finetune_cells.py", f"--config.data.store={rich_store.folder}"]
    arguments += [*flags, f"--workdir={tmp_path / 'run'}"]
    status, _, error = finetune(arguments, monkeypatch, capsys)
    assert status == 1, error
    assert_one_line(error)
    assert words in error
    assert not (tmp_path / "run").exists()


def test_a_dry_run_describes_what_would_run(rich_store, monkeypatch, capsys):
    arguments = ["--config=configs/finetune_cells.py", f"--config.data.store={rich_store.folder}"]
    status, output, error = finetune(
        [*arguments, "--config.task.label=kind", "--dry_run"], monkeypatch, capsys
    )
    assert status == 0, error
    assert "trained from scratch" in output
    assert "trainable, 0 frozen" in output
    # 96 cells: 67 to learn from, in batches of 12.
    assert "6 steps (6 an epoch), the first 2 of them warmup" in output
