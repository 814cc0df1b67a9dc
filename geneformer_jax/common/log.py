"""The logger of the package, `geneformer_jax`: quiet, unless a program asks as the commands do."""

import logging
import sys
from collections.abc import Callable

from geneformer_jax.common.files import system_error_in

logger = logging.getLogger("geneformer_jax")
# Without a handler Python would print warnings to standard error on its own.
logger.addHandler(logging.NullHandler())


class _StandardOutput(logging.Handler):
    """Prints messages to whatever standard output is at that time."""

    def __init__(self, written: Callable[[str], str]):
        super().__init__()
        self._written = written

    def emit(self, record: logging.LogRecord) -> None:
        print(self._written(self.format(record)), file=sys.stdout, flush=True)


def show_log(level: int = logging.INFO, written: Callable[[str], str] = str) -> None:
    """Prints what the package logs on standard output; safe to repeat.

    Args:
      level: lowest that is printed.
      written: message -> as it is printed.
    """
    logger.setLevel(level)
    # A library may have given the root logger a handler, which would print everything again.
    logger.propagate = False
    for each in _printing():
        logger.removeHandler(each)
    logger.addHandler(_StandardOutput(written))
    logging.getLogger("absl").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    # Orbax logs with all its threads that the disk is full, and raises the error too.
    error = record.exc_info and record.exc_info[1]
    return not error or system_error_in(error) is None


def hide_log() -> None:
    """Prints nothing of what the package logs, warnings included."""
    logger.setLevel(logging.CRITICAL)
    for each in _printing():
        logger.removeHandler(each)


def is_shown() -> bool:
    """Whether the program prints what the package logs, as commands do."""
    return bool(_printing())


def _printing() -> list[logging.Handler]:
    return [each for each in logger.handlers if isinstance(each, _StandardOutput)]
