"""What must stand beside a fine-tuned network: naive guesses, steps enough to learn, a verdict."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier

from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning import multitask
from geneformer_jax.finetuning.classification import baselines
from geneformer_jax.finetuning.classification.baselines import COMMONEST, commonest_predictions
from geneformer_jax.finetuning.classification.report import verdict
from geneformer_jax.finetuning.config import MultitaskConfig, finetune_config, typed_finetune_config
from geneformer_jax.finetuning.multitask import prepare_multitask
from geneformer_jax.finetuning.prepare import prepare_finetuning
from geneformer_jax.training.optimizer import warmup_steps
from tests.helpers.labelled_tasks import ToyTask, config_of
from tests.helpers.task_cells import cell_task

FOREST, SVM = "random forest, ranks", "SVM, ranks"


def results(unit: str, **values: tuple[float, float]) -> pd.DataFrame:
    """Methods with (accuracy, AUC), each with an interval of 0.05 on both sides."""
    rows = [
        {"method": name, "per": unit, "accuracy": accuracy, "auc_plain": auc}
        | {"accuracy_low": accuracy - 0.05, "accuracy_high": accuracy + 0.05}
        | {"auc_plain_low": auc - 0.05, "auc_plain_high": auc + 0.05}
        for name, (accuracy, auc) in values.items()
    ]
    rows.insert(0, {"method": "Geneformer", "per": "occurrence", "accuracy": 1.0})
    rows.append({"method": "published", "per": "not run"})
    return pd.DataFrame(rows)


CASES = [
    # unit, network, commonest class, forest and SVM -> words
    ("cell", (0.9, 0.95), (0.3, 0.5), (0.8, 0.9), ("learned: accuracy 0.900", "beats", FOREST)),
    ("cell", (0.9, 0.95), (0.3, 0.5), (0.94, 0.9), ("learned", "is level with", FOREST)),
    ("cell", (0.9, 0.95), (0.3, 0.5), (0.96, 0.9), ("learned", "LOSES to", FOREST)),
    ("cell", (0.143, 0.5), (0.343, 0.5), (0.9, 0.9), ("nothing shows that", "0.143", "0.343")),
    ("cell", (0.36, 0.5), (0.343, 0.5), (0.9, 0.9), ("nothing shows that", "epochs")),
    ("cell", (0.9, 0.8), (0.9, 0.5), (0.9, 0.9), ("AUC 0.800", "does NOT name them better")),
    ("gene", (0.75, 0.9), (0.75, 0.5), (0.75, 0.8), ("learned: AUC 0.900", "beats", FOREST)),
    ("gene", (0.9, 0.54), (0.75, 0.5), (0.75, 0.8), ("nothing shows that", "LOSES to", FOREST)),
]


@pytest.mark.parametrize(("unit", "network", "commonest", "forest", "words"), CASES)
def test_a_verdict_says_whether_it_learned_and_what_it_loses_to(
    unit, network, commonest, forest, words
):
    values = {"Geneformer": network, SVM: (0.1, 0.1), FOREST: forest, COMMONEST: commonest}
    values |= {"no pretraining, 3 layers": (1.0, 1.0)}
    table = results(unit, **values)
    text = verdict(SimpleNamespace(unit=unit), table)
    assert all(word in text for word in words), text
    other = verdict(SimpleNamespace(unit=unit), table, "warm up less")
    assert other.endswith("warm up less") == ("epochs" in text)
    own, naive, best = (each[unit == "gene"] for each in (network, commonest, forest))
    learned = text.startswith("Geneformer learned: ")
    assert learned == (own - 0.05 > naive) == ("`config.epochs`" not in text)
    unproven = ("nothing shows that", "does NOT name them better")
    assert sum(words in text for words in unproven) == (not learned)
    sides = {"beats": best < own - 0.05, "LOSES to": best > own + 0.05}
    assert {word: word in text for word in sides} == sides
    assert ("is level with" in text) == (not any(sides.values()))
    known = {f"{value:.3f}" for value in table.select_dtypes("number").to_numpy().flat}
    assert set(re.findall(r"\d\.\d+", text)) <= known
    assert "no pretraining" not in text and "\n" not in text
    alone = {"Geneformer": network, COMMONEST: commonest}
    assert "classical" not in verdict(SimpleNamespace(unit=unit), results(unit, **alone))


def test_the_commonest_class_is_that_of_the_cells_that_are_learned_from(toy):
    task = cell_task(toy[1], "donor")
    table = commonest_predictions(task)
    assert sorted(table["id"]) == sorted(task.labels.index)
    for fold, rows in table.groupby("fold"):
        counts = task.labels[task.split.ids(fold, "train")].value_counts()
        assert set(rows["predicted"]) == {counts.idxmax()}
        np.testing.assert_allclose(rows["probability_a"], counts["a"] / counts.sum(), rtol=1e-6)
        assert (rows["label"].to_numpy() == task.labels[rows["id"]].to_numpy()).all()


def test_baselines_of_many_cells_learn_from_some_and_hold_few_in_memory(toy, monkeypatch):
    task = cell_task(toy[1])
    dense = baselines.rank_matrix(task.cells).toarray()
    read, sizes = baselines.rank_matrix, []

    def counted(cells, wanted):
        sizes.append(len(wanted))
        return read(cells, wanted)

    monkeypatch.setattr(baselines, "rank_matrix", counted)
    monkeypatch.setattr(baselines, "MAX_LEARNED_CELLS", 40)
    monkeypatch.setattr(baselines, "_CELLS_AT_A_TIME", 25)
    features = baselines.rank_features(task)
    assert max(sizes) == 40 and sum(sizes) == 40 + len(task.labels)
    drawn = baselines._draw(np.arange(len(dense)))
    axis = np.linalg.svd(dense[drawn])[2][0]
    assert abs(np.corrcoef(features[:, 0], dense @ axis)[0, 1]) > 0.999
    fitted = []

    class Counting(DummyClassifier):
        def fit(self, x, y):
            fitted.append(len(x))
            return super().fit(x, y)

    monkeypatch.setattr(baselines, "make_estimator", lambda *_: Counting())
    tested = baselines.baseline_predictions(task, features, "any")
    assert fitted == [40, 40, 40] and len(tested) == len(task.labels)


def test_warmup_is_a_part_of_the_steps_and_more_than_them_is_warned_of(toy_store):
    task = ToyTask("cell", toy_store)
    optimizer = typed_finetune_config(finetune_config()).optimizer
    assert (warmup_steps(optimizer, 41), warmup_steps(optimizer, 20_000)) == (5, 2_000)
    setup = prepare_finetuning(task, None, config_of(epochs=2, **{"optimizer.warmup_steps": 9}))
    data = task.fold_data(0)
    steps = 2 * -(-len(data.train.rows) // 8)
    (line,) = setup.describe_steps(0, data)
    assert f"{steps} steps ({steps // 2} an epoch), the first 9 of them warmup" in line
    slow = dataclasses.replace(setup.config.optimizer, warmup_steps=500)
    setup = dataclasses.replace(setup, config=dataclasses.replace(setup.config, optimizer=slow))
    assert "warning: 500 steps of warmup" in setup.describe_steps(0, data)[1]
    assert setup.long_warmup(task).startswith(f"500 steps of warmup, but only {steps} steps")


def test_infinite_numbers_are_not_learned(toy):
    """Their mean is infinite and their deviation NaN: all cells would count as without a number."""
    cells = toy[1]
    obs = cells.obs.assign(age=np.where(cells.obs["kind"] == "b", np.inf, 30.0))
    cells = type(cells)(**{**vars(cells), "obs": obs})
    with pytest.raises(InputError, match=r'"age" holds "inf" .* no finite number'):
        prepare_multitask(MultitaskConfig(numbers="age"), cells)
    with pytest.raises(InputError, match="weight nan"):
        prepare_multitask(MultitaskConfig(classes="kind", weights="kind=nan"), cells)


def test_several_targets_stand_beside_the_commonest_class_and_the_mean(toy):
    cells = toy[1]
    obs = cells.obs.assign(age=np.where(cells.obs["kind"] == "b", 60.0, 30.0))
    cells = type(cells)(**{**vars(cells), "obs": obs})
    task = prepare_multitask(MultitaskConfig(classes="kind", numbers="age"), cells)
    tested = task.split.ids(0, "test")
    learned = obs.loc[task.split.ids(0, "train")]
    ids = {"id": tested, "fold": 0}
    kind = pd.DataFrame(ids | {"task": "kind", "label": obs.loc[tested, "kind"].to_numpy()})
    kind["predicted"] = kind["label"]
    age = pd.DataFrame(ids | {"task": "age", "value": obs.loc[tested, "age"].to_numpy()})
    age["predicted_value"] = learned["age"].mean() + 1e-3
    predictions = pd.concat([kind, age], ignore_index=True)
    text = multitask.verdict(task, predictions)
    share = (obs.loc[tested, "kind"] == learned["kind"].mode()[0]).mean()
    assert f"kind learned (accuracy 1.000, always naming the commonest class {share:.3f})" in text
    assert "age NOT shown to be learned" in text
    error = (obs.loc[tested, "age"] - learned["age"].mean()).abs().mean()
    assert f"of always naming the mean {error:.3g}" in text
