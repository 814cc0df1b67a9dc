"""What goes between driver and workers: a command line, share numbers, and short answers."""

from typing import Literal, NamedTuple

Step = Literal["start", "begin", "make", "finish"]
Share = tuple[int, int]


class Command(NamedTuple):
    """A command whose work is shared out, and how its workers run it.

    Attributes:
      name: of the command, such as "tokenize".
      arguments: flags, as typed.
      folder: in which they are given, from which their paths start.
      cores: of each worker.
    """

    name: str
    arguments: tuple[str, ...]
    folder: str
    cores: int


class Answer(NamedTuple):
    """What a worker has to say of one step.

    Attributes:
      done: the share is made; the output is there. False: call again when all have got as far.
      lines: what the command printed.
      refused: the input is bad, in one line.
      failed: anything else went wrong, in one line; it may go right the next time.
    """

    done: bool = True
    lines: tuple[str, ...] = ()
    refused: str = ""
    failed: str = ""
