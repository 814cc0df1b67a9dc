"""Long runs hold no more at their end than after their beginning; `long_runs` tells the figures."""

import sys

import pytest

from tests.campaigns import exchanged
from tests.campaigns.long_runs import Held, growth, is_flat, restarts, watch_inside

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def samples(memory=lambda i: 1_000, handles=lambda i: 20) -> list[Held]:
    return [Held(memory(i), handles(i), 8) for i in range(400)]


@pytest.mark.parametrize(
    ("held", "flat"),
    [
        (samples(), True),
        # Compiling, and then a checkpoint now and again.
        (samples(lambda i: min(10 * i, 1_000) + 300 * (i % 20 == 0)), True),
        (samples(lambda i: 1_000 + i // 8), False),
        (samples(handles=lambda i: 20 + i // 100), False),
    ],
    ids=["flat", "spikes", "memory leaks", "handles leak"],
)
def test_a_leak_is_told_from_moments_of_more(held, flat):
    assert is_flat(growth(held)) == flat


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("loop", "arguments"),
    [("train", ["100000"]), ("load", ["100000", "2"]), ("embed", ["5000000"])],
)
def test_nothing_grows(loop, arguments):
    told = watch_inside(loop, *arguments)
    assert told["samples"] > 200 and told["right"], told


@pytest.mark.slow
def test_a_run_with_restarts_is_the_run_without():
    told = restarts(steps=4_000, every=20)
    assert told["stopped"] >= 3 and told["right"], told


@pytest.mark.slow
def test_what_is_exchanged_between_versions_is_read_by_its_own(tmp_path):
    exchanged.write(tmp_path)
    apart = exchanged.read(tmp_path)
    assert apart.keys() == {"embeddings", "probabilities", "loss"}
