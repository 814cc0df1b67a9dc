import jax.numpy as jnp
import numpy as np
import pytest

from geneformer_jax.inference.pipeline import Throughput, run_ahead


@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_are_started_ahead_of_their_results(ahead):
    started = []

    def start(batch):
        started.append(batch)
        return {"double": jnp.full(2, 2 * batch)}

    results = []
    for batch, result in run_ahead(range(6), start, ahead):
        assert len(started) == min(batch + 1 + ahead, 6)
        assert isinstance(result["double"], np.ndarray)
        results.append((batch, int(result["double"][0])))
    assert results == [(number, 2 * number) for number in range(6)]


def test_no_batches_have_no_results():
    assert list(run_ahead([], pytest.fail)) == []


def test_compiling_is_counted_once_for_each_program_and_kept_out_of_the_seconds(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 5.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    counted = Throughput("edits")
    with counted.clock():
        for _ in range(2):
            with counted.starting((8, 64)):
                counted.add(3, 100, 512)
    assert counted.compiling == 3.0
    assert counted.seconds == 10.0 - 3.0
    expected = {"edits": 6, "tokens": 200, "padded": 1024, "seconds": 7.0, "compiling": 3.0}
    assert counted.summary() == expected
    assert "6 edits" in counted.describe()
    assert "0.9 edits/s" in counted.describe()
