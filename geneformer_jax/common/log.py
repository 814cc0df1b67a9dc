"""The logger of the package, `geneformer_jax`: quiet, unless a program asks as the commands do."""

import logging
import sys

logger = logging.getLogger("geneformer_jax")
# Without a handler Python would print warnings to standard error on its own.
logger.addHandler(logging.NullHandler())


class _StandardOutput(logging.Handler):
    """Prints messages as they are, to whatever standard output is at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stdout, flush=True)


def show_log(level: int = logging.INFO) -> None:
    """Prints what the package logs on standard output, from a level upwards; safe to repeat."""
    logger.setLevel(level)
    # A library may have given the root logger a handler, which would print everything again.
    logger.propagate = False
    if not is_shown():
        logger.addHandler(_StandardOutput())


def is_shown() -> bool:
    """Whether the program prints what the package logs, as commands do."""
    return any(isinstance(each, _StandardOutput) for each in logger.handlers)
