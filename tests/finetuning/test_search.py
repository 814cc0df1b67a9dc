"""Searching hyper-parameters: trials resume, are pruned, and make one table."""

import dataclasses

import pandas as pd
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.finetuning.config import SearchConfig
from geneformer_jax.finetuning.loop import FoldRun
from geneformer_jax.finetuning.search import TRIALS, Dimension, Search, with_values
from tests.helpers.labelled_tasks import ToyTask, config_of

SPACE = ("optimizer.learning_rate: log 1e-4 3e-2", "optimizer.schedule: one of linear, constant")
STEPS = {"steps": 8, "stopping.every_steps": 2}


def search_in(folder, store, space=SPACE, **changes) -> Search:
    search = SearchConfig(space=space, pruning_after=2, **changes)
    return Search(ToyTask("cell", store), None, config_of(**STEPS), search, folder)


@pytest.mark.slow
def test_trials_go_on_after_a_kill_and_end_in_one_table(toy_store, tmp_path, monkeypatch):
    folder = tmp_path / "search"
    evaluate, calls = FoldRun.evaluate, []

    def dying(run, trainable):
        calls.append(run.folder)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return evaluate(run, trainable)

    with monkeypatch.context() as patch:
        patch.setattr(FoldRun, "evaluate", dying)
        with pytest.raises(KeyboardInterrupt):
            search_in(folder, toy_store).run(4)
    assert calls[-1].name == "trial_1"
    assert not (calls[-1] / "predictions.parquet").exists()
    table = search_in(folder, toy_store).run(4)
    assert sorted(table["trial"].tolist())[:2] == [0, 1]
    assert len(table) == 4
    assert (calls[-1] / "predictions.parquet").exists()
    assert set(table["state"]) <= {"complete", "pruned"}
    complete = table[table["state"] == "complete"]
    assert complete["macro_f1"].is_monotonic_decreasing
    assert table["optimizer.learning_rate"].between(1e-4, 3e-2).all()
    pd.testing.assert_frame_equal(pd.read_csv(folder / TRIALS), table, check_dtype=False)
    again = search_in(folder, toy_store).run(4)
    pd.testing.assert_frame_equal(again, table)


@pytest.mark.slow
def test_a_trial_worse_than_the_median_is_pruned(toy_store, tmp_path, monkeypatch):
    scores = iter([1.0] * 8 + [0.0] * 8)

    def evaluate(run, trainable):
        score = next(scores)
        return {"held_out_loss": 1 - score, "held_out_macro_f1": score}

    monkeypatch.setattr(FoldRun, "evaluate", evaluate)
    # Of rates only, so that the trials share their programs.
    table = search_in(tmp_path / "search", toy_store, SPACE[:1]).run(3)
    assert table["state"].tolist() == ["complete", "complete", "pruned"]
    assert table["steps"].tolist() == [8, 8, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer.lerning_rate: log 1 2", 'did you mean "optimizer.learning_rate"'),
        ("optimizer.learning_rate: logarithmic 1 2", "write KEY"),
        ("optimizer.learning_rate: log 0 2", "must rise"),
        ("epochs: int 3 1", "must rise"),
        ("epochs: int a 1", '"a" does not fit'),
    ],
)
def test_a_space_that_cannot_be_read_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        Dimension(text, dataclasses.asdict(config_of()))


def test_values_are_checked_as_those_of_a_file():
    config = with_values(config_of(), {"optimizer.weight_decay": 0.3, "epochs": 4})
    assert (config.optimizer.weight_decay, config.epochs) == (0.3, 4)
    with pytest.raises(InputError, match="must not be negative"):
        with_values(config_of(), {"optimizer.weight_decay": -1.0})


def test_an_unknown_score_or_another_search_is_refused(toy_store, tmp_path):
    with pytest.raises(InputError, match="the scores are loss, accuracy, macro_f1"):
        search_in(tmp_path / "one", toy_store, metric="f1").run(1)
    with pytest.raises(InputError, match="is of a run with search"):
        search_in(tmp_path / "one", toy_store).run(1)
