"""The protocol of classification tasks: nothing leaks, bad tasks are refused, a run goes on."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.batches.labelled import UNLABELLED
from geneformer_jax.cells.tokenization.vocabulary import V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS
from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.classification import protocol
from geneformer_jax.finetuning.classification.baselines import (
    RANKS,
    SVM,
    baseline_predictions,
    features_of,
    rank_matrix,
)
from geneformer_jax.finetuning.classification.config import TaskConfig, typed_task
from geneformer_jax.finetuning.classification.controls import (
    MATCHED,
    SHUFFLED,
    frequency_strata,
    permuted_aucs,
    permuted_labels,
    summarise_control,
)
from geneformer_jax.finetuning.classification.folder import TaskFolder
from geneformer_jax.finetuning.classification.metrics import fold_roc
from geneformer_jax.finetuning.classification.predictions import make_predictions
from geneformer_jax.finetuning.classification.protocol import prepare_task, run_task
from geneformer_jax.finetuning.classification.report import PUBLISHED
from geneformer_jax.finetuning.classification.task import find_occurrences, labelled_cells
from geneformer_jax.finetuning.config import typed_finetune_config
from geneformer_jax.inference.cells import ChosenCells
from tests.helpers.pages import assert_files_are_linked, read_page
from tests.helpers.task_cells import (
    cell_task,
    gene_file,
    gene_task,
    toy_gene_labels,
    toy_task_cells,
)

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "tasks").glob("*.py"))


@pytest.mark.parametrize("special_tokens", [V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS])
def test_occurrences_are_those_of_a_search_cell_by_cell(special_tokens):
    _, cells = toy_task_cells(20, special_tokens)
    wanted = np.array([9, 40, 77, 120])
    expected = []
    for row, tokens in enumerate(cells.read(range(20))):
        genes = [token for token in tokens.tolist() if token >= len(special_tokens)]
        expected += [(row, t, i) for i, t in enumerate(genes) if t in wanted]
    found = find_occurrences(cells, wanted)
    assert [tuple(map(int, each)) for each in zip(*found, strict=True)] == expected


def test_held_out_genes_have_no_label_while_learning(task):
    for fold in range(5):
        data = task.fold_data(fold)
        learned = np.flatnonzero(data.train.labels != UNLABELLED)
        tested = np.flatnonzero(data.test.labels != UNLABELLED)
        assert not set(learned) & set(tested)
        ids = {side: set(task.split.ids(fold, side)) for side in ("train", "test")}
        vocabulary = task.cells.vocabulary
        assert {vocabulary.gene_id_of(token) for token in learned} == ids["train"]
        assert {vocabulary.gene_id_of(token) for token in tested} == ids["test"]
        assert (data.valid.labels == UNLABELLED).all() and not len(data.valid.rows)
        for token in tested:
            name = task.classes[data.test.labels[token]]
            assert name == task.labels[vocabulary.gene_id_of(token)]
        tokens = task.cells.read(range(len(task.cells)))
        assert list(data.test.rows) == [i for i, t in enumerate(tokens) if set(t) & set(tested)]


def test_a_side_draws_at_most_so_many_cells(toy, task):
    few = gene_task(toy[1], task.labels, max_cells=10)
    rows, every = few.fold_data(0).train.rows, task.fold_data(0).train.rows
    assert len(rows) == 10 and set(rows) <= set(every) and list(rows) == sorted(rows)
    chosen, absent = labelled_cells(toy[1], task.labels, 10)
    assert len(chosen.lengths) == 10 and chosen.dropped["not drawn"] == 110
    present = {t for tokens in chosen.read(range(10)) for t in tokens.tolist()}
    assert set(absent) == {i for i in task.labels.index if task.tokens[i] not in present}


def test_cells_have_their_own_labels_in_every_fold(toy):
    task = cell_task(toy[1], "donor")
    kinds, donors = toy[1].obs["kind"].to_numpy(), toy[1].obs["donor"].to_numpy()
    for fold in range(3):
        data = task.fold_data(fold)
        for side in (data.train, data.test):
            np.testing.assert_array_equal(np.array(task.classes)[side.labels], kinds[side.rows])
        assert not set(donors[data.train.rows]) & set(donors[data.test.rows])


def test_permuted_labels_keep_what_they_must(toy, task):
    rng = np.random.default_rng(0)
    shuffled = permuted_labels(task, rng)
    assert shuffled.value_counts().equals(task.labels.value_counts())
    assert not shuffled.equals(task.labels)
    strata = frequency_strata(task)
    frequency = task.gene_frequencies()
    assert np.bincount(strata).tolist() == [10] * 6
    bounds = [(frequency[strata == s].min(), frequency[strata == s].max()) for s in range(6)]
    assert all(low[1] <= high[0] for low, high in itertools.pairwise(bounds))
    matched = permuted_labels(task, rng, strata)
    for stratum in range(6):
        before, after = task.labels[strata == stratum], matched[strata == stratum]
        assert sorted(before) == sorted(after)
    by_donor = cell_task(toy[1], "donor")
    donors = by_donor.groups
    classes = {tuple(permuted_labels(by_donor, rng).groupby(donors).nunique()) for _ in range(5)}
    assert classes == {(1,) * 6}


def shuffled_control(task, kind: str = SVM, permutations: int = 20) -> dict:
    features = features_of(task, RANKS, rank_matrix(task.cells))
    aucs = permuted_aucs(
        task, lambda each: baseline_predictions(each, features, kind), SHUFFLED, permutations
    )
    return summarise_control(kind, SHUFFLED, aucs, 1.0)


def test_shuffled_labels_of_toys_give_one_half(toy, task):
    for each in (task, cell_task(toy[1])):
        control = shuffled_control(each, permutations=10)
        assert control["low"] < 0.5 < control["high"]
        assert control["high"] - control["low"] < 0.2
        assert control["p"] == pytest.approx(1 / 11)


def test_shuffled_labels_show_a_leak(task, monkeypatch):
    """Were tested genes learned from, shuffled labels would be remembered."""
    ids = type(task.split).ids
    monkeypatch.setattr(
        type(task.split),
        "ids",
        lambda split, fold, side: (
            ids(split, fold, side)
            if side == "test"
            else np.concatenate([ids(split, fold, "train"), ids(split, fold, "test")])
        ),
    )
    control = shuffled_control(task, permutations=5)
    assert control["low"] > 0.6


def test_what_frequency_alone_explains_is_kept_by_matched_labels(toy):
    """Classes that differ in frequency only: matched labels do as well as the true ones."""
    frequency = gene_task(toy[1], toy_gene_labels(150)).gene_frequencies()
    order = frequency.sort_values().index
    labels = pd.Series(["rare"] * 30 + ["common"] * 30, [*order[:30], *order[-30:]], dtype=object)
    task = gene_task(toy[1], labels)
    features = features_of(task, RANKS, rank_matrix(task.cells))

    def predict(each):
        return baseline_predictions(each, features, SVM)

    true_auc = fold_roc(predict(task)).plain_auc
    assert true_auc > 0.9
    means = {
        kind: permuted_aucs(task, predict, kind, 3)["auc"].mean() for kind in (SHUFFLED, MATCHED)
    }
    assert means[MATCHED] == pytest.approx(true_auc) and means[SHUFFLED] < 0.7


def fake_network(calls: list[str]):
    """A network that knows the answer three times in four, for each occurrence."""

    def network(task, folder: Path) -> pd.DataFrame:
        calls.append(folder.name)
        rng = np.random.default_rng(0)
        parts = []
        for fold in range(task.split.folds):
            test = task.fold_data(fold).test
            for row, tokens in zip(test.rows, task.cells.read(test.rows), strict=True):
                here = tokens[test.labels[tokens] != UNLABELLED]
                truth = test.labels[here]
                right = np.where(rng.random(len(here)) < 0.75, 0.7, 0.3)
                second = np.where(truth == 1, right, 1 - right)
                genes = [task.cells.vocabulary.gene_id_of(int(token)) for token in here]
                names = np.array(task.classes)[truth]
                both = np.column_stack([1 - second, second])
                part = make_predictions(genes, "gene", fold, names, both, task.classes)
                parts.append(part.assign(id=str(task.cells.obs.index[row])))
        return pd.concat(parts, ignore_index=True)

    return network


def test_a_run_writes_everything_and_goes_on_where_it_stopped(toy, task, tmp_path, monkeypatch):
    adata, cells = toy
    kinds = (SVM,)  # the quickest
    adata.write_h5ad(tmp_path / "counts.h5ad")
    config = TaskConfig(
        name="programs",
        genes=gene_file(tmp_path / "genes.tsv", task.labels),
        counts=str(tmp_path / "counts.h5ad"),
        permutations=2,
        controls=("shuffled", "matched", "network"),
        published={"fake": "AUC 0.91", "something else": "AUC 0.5"},
    )
    calls: list[str] = []

    def run():
        networks = {"fake": fake_network(calls)}
        prepared = prepare_task(config, cells)
        return run_task(config, prepared, tmp_path / "run", networks, {"x": 1}, estimators=kinds)

    with monkeypatch.context() as patch:
        patch.setattr(protocol, "permuted_aucs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not (tmp_path / "run" / "provenance.json").exists()
    results = run()
    assert calls == ["fake", "fake_shuffled_labels"]
    pd.testing.assert_frame_equal(run(), results)
    assert len(calls) == 2
    written = {path.name for path in (tmp_path / "run").iterdir()}
    figures = ("roc", "precision_recall", "confusion", "probabilities", "calibration")
    assert {f"{name}.{suffix}" for name in figures for suffix in ("png", "pdf")} <= written
    assert {"split.parquet", "labels.csv", "results.csv", "folds.csv", "controls.csv"} <= written
    table = results.set_index(["method", "per"])
    assert table.loc[("fake", "occurrence"), PUBLISHED] == "AUC 0.91"
    assert table.loc[("fake", "gene"), "auc"] > table.loc[("fake", "occurrence"), "auc"]
    assert table.loc[("fake", "occurrence"), "auc"] == pytest.approx(0.75, abs=0.03)
    assert table.loc[("something else", "not run"), PUBLISHED] == "AUC 0.5"
    # The commonest class, and what was published of something else.
    assert len(results) == 2 + 2 * len(kinds) + 1 + 1
    assert table.loc[("commonest class", "gene"), "auc"] == 0.5
    assert table.loc[("SVM, counts", "gene"), "auc"] > 0.95
    for name in ("auc_plain", "accuracy", "macro_f1"):
        measured = results[results["per"] != "not run"]
        assert (measured[f"{name}_low"] <= measured[name]).all()
        assert (measured[name] <= measured[f"{name}_high"]).all()
    controls = pd.read_csv(tmp_path / "run" / "controls.csv")
    assert len(controls) == 2 * 2 * len(kinds) + 1
    assert controls["control"].value_counts()["shuffled labels once, by fold"] == 1
    page = read_page(tmp_path / "run" / "report.html")
    assert PUBLISHED in page.rows[0]
    # The provenance is written last of all, and the page holds it.
    files = sorted(written - {"report.html", "provenance.json", "lock"})
    assert_files_are_linked(page, tmp_path / "run", files)


def interrupted(*_) -> None:
    raise KeyboardInterrupt


def test_a_damaged_table_is_made_again(task, tmp_path):
    made = []

    def tables() -> list[pd.DataFrame]:
        folder = TaskFolder(tmp_path / "run", TaskConfig(genes="genes.tsv"), task)
        return [folder.table(f"controls/{name}", lambda name=name: make(name)) for name in "ab"]

    def make(name: str) -> pd.DataFrame:
        made.append(name)
        return pd.DataFrame({"auc": np.arange(9.0)})

    expected = tables()
    path = tmp_path / "run" / "controls" / "b.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    for found, wanted in zip(tables(), expected, strict=True):
        pd.testing.assert_frame_equal(found, wanted)
    assert made == ["a", "b", "b"]


def test_a_folder_of_another_task_is_refused(task, tmp_path):
    config = TaskConfig(genes="genes.tsv")
    TaskFolder(tmp_path / "run", config, task)
    TaskFolder(tmp_path / "run", config, task)
    changed = task.labels.copy()
    changed.iloc[0] = "second" if changed.iloc[0] == "first" else "first"
    for other, labels in ((TaskConfig(genes="genes.tsv", seed=1), task.labels), (config, changed)):
        with pytest.raises(InputError, match="is of a run with"):
            TaskFolder(tmp_path / "run", other, task.with_labels(labels))


def test_classes_too_small_to_split_are_dropped_on_request_and_counted(toy):
    cells = toy[1]
    obs = cells.obs.copy()
    obs.loc[obs.index[:3], "kind"] = ["lone", "pair", "pair"]
    changed = type(cells)(**{**vars(cells), "obs": obs})
    settings = {"unit": "cell", "label": "kind", "folds": 1, "valid_fraction": 0.125}
    with pytest.raises(InputError, match=r'"lone" 1, "pair" 2.*`config\.task\.drop_small`=True'):
        prepare_task(TaskConfig(**settings), changed)
    task = prepare_task(TaskConfig(**settings, drop_small=True), changed)
    assert task.classes == ("a", "b") and len(task.labels) == 117
    (line,) = (line for line in task.summary if "too small" in line)
    assert line.startswith("3 cells left out") and '"lone" 1, "pair" 2' in line
    by_donor = TaskConfig(unit="cell", label="kind", folds=1, group="donor", drop_small=True)
    task = prepare_task(by_donor, changed)
    # The pair is of two donors, one for each side.
    assert task.classes == ("a", "b", "pair") and len(task.groups) == len(task.labels) == 119


def test_a_split_by_cell_is_warned_of_and_what_is_left_out_is_counted(toy, capsys):
    cells = toy[1]
    obs = cells.obs.copy()
    obs.loc[obs.index[:7], "kind"] = None
    changed = type(cells)(**{**vars(cells), "obs": obs})
    task = prepare_task(TaskConfig(unit="cell", label="kind", folds=2), changed)
    lines = task.summary
    assert lines[0].startswith("113 cells in 2 classes: a ")
    assert lines[1].startswith("7 cells left out, no label: c0, c1")
    assert any(line.startswith('warning: 6 values of "donor"') for line in lines)
    by_donor = TaskConfig(unit="cell", label="kind", group="donor", folds=2)
    assert not any("warning" in line for line in prepare_task(by_donor, changed).summary)
    assert len(task.labels) == 113


def test_genes_in_no_cell_are_left_out_and_named(toy, tmp_path):
    """A network could neither learn nor test them, and a baseline sees nothing but zeros."""
    labels, cells = toy_gene_labels(), toy[1]
    gene = labels.index[0]
    token = cells.vocabulary.tokens_of([gene])[0]
    rows = [row for row, each in enumerate(cells.read(range(len(cells)))) if token not in each]
    config = TaskConfig(genes=gene_file(tmp_path / "g.tsv", labels))
    task = prepare_task(config, ChosenCells(cells, np.array(rows), {}))
    assert 0 < len(rows) < len(cells) and gene not in task.labels.index
    (line,) = [line for line in task.summary if "in none of the cells" in line]
    assert gene in line


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"unit": "donor"}, "choose one of gene, cell"),
        ({"genes": ""}, "name the file of gene classes"),
        ({"group": "donor"}, "genes have no donors"),
        ({"unit": "cell"}, "name the obs column of labels"),
        ({"controls": ("random",)}, "choose one of shuffled"),
        ({"folds": 0}, "at least 1"),
        ({"permutations": 1}, "at least 2"),
        ({"filters": ("kind:z",)}, 'no value "z"'),
        ({"unit": "cell", "label": "kind", "group": "doner"}, 'did you mean "donor"'),
    ],
)
def test_bad_configurations_are_refused(toy, task, tmp_path, changes, text):
    fields = {"genes": gene_file(tmp_path / "g.tsv", task.labels)} | changes
    with pytest.raises(InputError, match=text):
        prepare_task(TaskConfig(**fields), toy[1])


def test_a_run_of_nothing_and_unknown_keys_are_refused(task, tmp_path):
    with pytest.raises(InputError, match="neither a network nor a baseline"):
        run_task(TaskConfig(genes="x", baselines=False), task, tmp_path, {})
    with pytest.raises(InputError, match=r'no key "task\.folbs"'):
        typed_task({"folbs": 3})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_task_can_be_built(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    task = typed_task(config.task)
    assert task.name and task.folds == 5 and task.untrained_layers == (6, 4, 3, 1)
    assert task.published["Geneformer"] and f"{path.stem}.py" in module.__doc__
    fields = config.to_dict()
    del fields["task"]
    finetune = typed_finetune_config(fields)
    assert finetune.data.cells_per_batch == 12
    if task.unit == "gene":
        optimizer = finetune.optimizer
        settings = (optimizer.learning_rate, optimizer.warmup_steps, optimizer.weight_decay)
        assert settings == (5e-5, 500, 0.001) and finetune.epochs == 1
        assert optimizer.schedule == "linear" and finetune.tuning.freeze_layers == 4


def test_there_is_a_configuration_for_each_of_the_papers_tasks():
    assert {path.stem for path in CONFIGS} == {
        "dosage",
        "bivalent_vs_lys4_only",
        "bivalent_vs_unmethylated",
        "regulatory_range",
        "n1_central",
        "n1_target",
        "cell_types",
        "disease_by_donor",
    }
