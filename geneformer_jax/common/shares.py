"""Work of a command that any number of processes may share out, and the flags that say which."""

from typing import Protocol

from absl import flags

from geneformer_jax.common.command_line import parse_shard, show
from geneformer_jax.common.errors import InputError

FLAGS = flags.FLAGS

# Flags defined here belong to the command that asks for them, and appear in its --help.
flags.disclaim_key_flags()


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


def share_flags() -> None:
    """Defines the flags of a command whose work several processes may share out."""
    flags.DEFINE_string("shard", "", "i/n: make only share i of n, from 0/n to (n-1)/n.")
    flags.DEFINE_bool("finish", False, "Join the shares, when all are made.")


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
