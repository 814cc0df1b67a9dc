"""Progress of long work: a bar on a terminal; elsewhere plain lines, where a command runs."""

import sys
import time

import tqdm

from geneformer_jax.common.commands.interrupts import require_going_on
from geneformer_jax.common.log import is_shown

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts work done out of a total.

    On a terminal this is a tqdm bar; in a log file of a command it is one plain line every 15
    seconds, with the time left at the rate so far, and one at the end. Python functions print no
    lines, and of no work at all nothing is said. Use as a context manager; call `advance` with the
    units done and optional notes such as `loss="3.21"`.
    Seconds of compiling are left out of the rate, as they will not come again.
    """

    def __init__(self, total: int, description: str, unit: str, initial: int = 0):
        self._terminal = sys.stderr.isatty()
        self._plain_lines = is_shown() and bool(total) and not self._terminal
        self._bar = tqdm.tqdm(
            total=total,
            initial=initial,
            desc=description,
            unit=f" {unit}",
            disable=not self._terminal or not total,
            dynamic_ncols=True,
        )
        self._done, self._total = initial, total
        self._description, self._unit = description, unit
        self._initial, self._began = initial, time.monotonic()
        self._last_line = self._began
        self._compiling = 0.0
        self._notes = self._printed = ""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._plain_lines:
            self._print_line()

    def advance(self, units: int, *, compiling: float | None = None, **notes: str) -> None:
        """Adds finished work.

        Args:
          units: of work.
          compiling: seconds spent on compiling since the beginning; None leaves them as they were.
          **notes: shown beside the count.

        Raises:
          KeyboardInterrupt: Ctrl-C came before, and nothing ended by it.
        """
        require_going_on()
        self._done += units
        if compiling is not None:
            self._leave_out(compiling)
        if notes:
            self._notes = ", ".join(f"{name} {value}" for name, value in notes.items())
            self._bar.set_postfix_str(self._notes, refresh=False)
        self._bar.update(units)
        if self._plain_lines and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._print_line(self._time_left())

    def _leave_out(self, compiling: float) -> None:
        if self._terminal and self._total:
            self._bar.start_t += compiling - self._compiling
        self._compiling = compiling

    def _print_line(self, time_left: str = "") -> None:
        notes = f"  {self._notes}" if self._notes else ""
        count = f"{self._done:,} of {self._total:,} {self._unit}"
        line = f"{self._description}: {count}{time_left}{notes}"
        if line != self._printed:
            print(line, file=sys.stderr, flush=True)
        self._last_line, self._printed = time.monotonic(), line

    def _time_left(self) -> str:
        done, left = self._done - self._initial, self._total - self._done
        if not done or not left:
            return ""
        seconds = max(time.monotonic() - self._began - self._compiling, 0.0) / done * left
        return f", about {self._bar.format_interval(seconds)} left"
