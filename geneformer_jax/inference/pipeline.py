"""Batches through the devices, kept ahead of the host, and how fast that went."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax

Batch = TypeVar("Batch")


def run_ahead(
    batches: Iterable[Batch], start: Callable[[Batch], Any], ahead: int = 1
) -> Iterator[tuple[Batch, Any]]:
    """Yields (batch, its results on the host) in the order of the batches.

    The devices are kept `ahead` batches ahead of the host: they compute while the host reads the
    next batch and takes the last results.

    Args:
      batches: to run, read one at a time.
      start: starts a batch on the devices and returns its results (a tree of arrays) at once.
      ahead: batches whose results may wait on the devices while another one is started.
    """
    waiting: deque[tuple[Batch, Any]] = deque()
    for batch in batches:
        waiting.append((batch, start(batch)))
        if len(waiting) > ahead:
            yield _fetch(waiting)
    while waiting:
        yield _fetch(waiting)


def _fetch(waiting: deque[tuple[Batch, Any]]) -> tuple[Batch, Any]:
    batch, results = waiting.popleft()
    return batch, jax.device_get(results)


@dataclass
class Throughput:
    """What was computed, and in what time.

    Attributes:
      unit: what is counted, such as "cells" or "edits".
      done: number of them.
      tokens: their tokens.
      padded: tokens with padding and filler rows.
      seconds: of the whole, reading included, but without `compiling`.
      compiling: seconds until the first batch of each shape was under way.
    """

    unit: str = "cells"
    done: int = 0
    tokens: int = 0
    padded: int = 0
    seconds: float = 0.0
    compiling: float = 0.0
    _started: set[Hashable] = field(default_factory=set, init=False, repr=False, compare=False)

    def add(self, done: int, tokens: int, padded: int) -> None:
        """Counts a batch."""
        self.done += done
        self.tokens += tokens
        self.padded += padded

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        """Adds the time of the block to `seconds`, less what it spends in `starting`."""
        began, compiled = time.perf_counter(), self.compiling
        yield
        self.seconds += time.perf_counter() - began - (self.compiling - compiled)

    @contextlib.contextmanager
    def starting(self, program: Hashable) -> Iterator[None]:
        """Adds the time of the block to `compiling` if it is the first to start this program.

        Args:
          program: what a program is compiled for, such as the shape of its batches.
        """
        began = time.perf_counter()
        yield
        if program not in self._started:
            self._started.add(program)
            self.compiling += time.perf_counter() - began

    def summary(self) -> dict[str, int | float]:
        """Returns the figures by name, for the provenance; that of `done` is the unit."""
        return {
            self.unit: self.done,
            "tokens": self.tokens,
            "padded": self.padded,
            "seconds": self.seconds,
            "compiling": self.compiling,
        }

    def describe(self) -> str:
        """Returns one line for the user."""
        seconds = max(self.seconds, 1e-9)
        return (
            f"{self.done:,} {self.unit}, {self.tokens:,} tokens in {self.seconds:,.1f} s "
            f"({self.done / seconds:,.1f} {self.unit}/s, {self.tokens / seconds:,.0f} tokens/s), "
            f"after {self.compiling:,.1f} s of compiling; padding "
            f"{1 - self.tokens / max(self.padded, 1):.1%} of tokens"
        )
