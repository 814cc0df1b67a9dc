"""Workers of one machine do not take each other's cores."""

import os
import subprocess
import sys

import pytest

TAKES = """
import os, sys
from geneformer_jax.cluster import cores
cores.NAME = sys.argv[2]
cores.take_cores(int(sys.argv[1]))
cores.take_cores(int(sys.argv[1]))
print(sorted(os.sched_getaffinity(0)), flush=True)
sys.stdin.read()
"""


def begin(count: int) -> tuple[subprocess.Popen, list[int]]:
    """A process that takes cores and keeps them until it is ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", TAKES, str(count), f"tests-{os.getpid()}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, [int(core) for core in process.stdout.readline().strip("[]\n").split(",")]


@pytest.mark.multiprocess
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be shared out")
def test_each_worker_has_its_own_until_it_is_killed():
    everything = sorted(os.sched_getaffinity(0))
    each = len(everything) // 2
    (first, its), (second, others) = begin(each), begin(each)
    try:
        assert len(its) == len(others) == each and not set(its) & set(others)
        first.kill()
        first.wait()
        third, free = begin(each)
        third.kill()
        assert len(free) == each and not set(free) & set(others)
    finally:
        for process in (first, second, third):
            process.kill()
            process.communicate()


@pytest.mark.multiprocess
def test_who_may_have_all_cores_is_kept_from_none():
    process, cores = begin(len(os.sched_getaffinity(0)))
    process.communicate()
    assert cores == sorted(os.sched_getaffinity(0))
