"""Work of a command that any number of processes may share out, and the flags that say which."""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from absl import flags

from geneformer_jax.common.command_line import keep_out_of_configuration, parse_shard, show
from geneformer_jax.common.errors import InputError

FLAGS = flags.FLAGS

# Flags defined here belong to the command that asks for them, and appear in its --help.
flags.disclaim_key_flags()

# The one share of a process that makes all.
WHOLE = (0, 1)


class SharedRun(Protocol):
    """The work of a command, whose output is the same however many processes share it.

    How the work is cut into pieces follows from inputs and options alone, never from the number of
    shares; a share is some of the pieces, of about equal cost.
    """

    def is_complete(self) -> bool:
        """Whether the output is there, made by this command.

        Raises:
          InputError: it is another command's.
        """
        ...

    def prepare(self) -> None:
        """Checks the input, reads the model, plans the work; once per process.

        Raises:
          InputError: of bad input.
        """
        ...

    def make(self, shard: tuple[int, int]) -> bool:
        """Makes what is missing of share i of n; any number of shares, one after another.

        Args:
          shard: (i, n), i from 0 to n - 1.

        Returns:
          Whether it is made; False asks to be called again when all shares have got as far.

        Raises:
          InputError: another process is at work on this share.
        """
        ...

    def finish(self) -> None:
        """Joins the shares, when all are made.

        Raises:
          InputError: some are missing; it names them.
        """
        ...


@dataclass(frozen=True)
class PreparedByFlags:
    """A run whose `prepare` takes arguments, as a run that takes them from the command's flags.

    Attributes:
      run: that does the work.
      prepare_run: prepares it.
    """

    run: Any
    prepare_run: Callable[[Any], None]

    def is_complete(self) -> bool:
        """Whether the output is there."""
        return self.run.is_complete()

    def prepare(self) -> None:
        """Prepares the run."""
        self.prepare_run(self.run)

    def make(self, shard: tuple[int, int]) -> bool:
        """Makes a share."""
        return self.run.make(shard)

    def finish(self) -> None:
        """Joins the shares."""
        self.run.finish()


def shares_of(costs: Sequence[float], shares: int) -> list[int]:
    """Returns which share each piece of the work is of, ascending from 0.

    A share is a run of pieces. A piece is of the share in whose equal part of all the cost its
    middle lies, so pieces of a share i/n and of a share k/m that cover nothing in common differ.

    Args:
      costs: of each piece, at least 0.
      shares: n.
    """
    ends = list(itertools.accumulate(map(float, costs)))
    scale = shares / ((ends and ends[-1]) or 1.0)
    middles = (end - float(cost) / 2 for end, cost in zip(ends, costs, strict=True))
    return [min(int(middle * scale), shares - 1) for middle in middles]


def own_share(costs: Sequence[float], shard: tuple[int, int]) -> range:
    """Returns the numbers of the pieces of share i of n, see `shares_of`."""
    index, shares = shard
    of_pieces = shares_of(costs, shares)
    return range(bisect_left(of_pieces, index), bisect_left(of_pieces, index + 1))


def require_shares(shard: tuple[int, int], units: int, unit: str) -> None:
    """Raises InputError if there are more shares than `units` cells, or whatever `unit` says."""
    index, shares = shard
    if shares > max(units, 1):
        raise InputError(
            f"`shard` is {index}/{shares}, but there are only {units:,} {unit}; give at most as "
            "many shares"
        )


def share_flags() -> None:
    """Defines the flags of a command whose work several processes may share out."""
    flags.DEFINE_string("shard", "", "i/n: make only share i of n, from 0/n to (n-1)/n.")
    flags.DEFINE_bool("finish", False, "Join the shares, when all are made.")
    keep_out_of_configuration("shard", "finish")


def run_shared(run: SharedRun) -> None:
    """Makes all of a run, or what --shard or --finish ask for, and says what is left to do."""
    if FLAGS.shard and FLAGS.finish:
        raise InputError("`shard` makes a share and `finish` joins all of them; give one of them")
    shard = parse_shard(FLAGS.shard)
    if run.is_complete():
        print(f"{FLAGS.output} is complete and was written by this command: nothing to do")
        return
    run.prepare()
    if FLAGS.shard:
        _make_share(run, shard)
        return
    while not (FLAGS.finish or run.make(shard)):
        pass
    run.finish()


def _make_share(run: SharedRun, shard: tuple[int, int]) -> None:
    if run.make(shard):
        todo = "is done; when all are, run the same command with `finish`"
    else:
        todo = "waits for the others; when all have got as far, run the same command again"
    show([f"shard {FLAGS.shard} {todo}"])
