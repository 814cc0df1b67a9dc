"""Stages of a benchmark that go wrong in every way there is."""

import os
import signal
import time


def good(sizes):
    yield {"name": "first", "value": 0}
    yield {"name": "second", "value": sizes}
    yield {"name": "first", "value": 1}


def raises(sizes):
    yield {"name": "before", "value": 1}
    raise ValueError("no such\n thing")


def crashes(sizes):
    yield {"name": "before", "value": 1}
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(sizes):
    yield {"name": "before", "value": 1}
    time.sleep(1_000)
