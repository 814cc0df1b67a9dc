"""What a worker does: it reads a command line once, and then makes any number of its shares.

Nothing here imports JAX, which must not start before the worker has its cores and its device.
"""

import contextlib
import functools
import importlib
import io
import os
import sys
import traceback

from absl import flags

from geneformer_jax.cluster.cores import take_cores
from geneformer_jax.cluster.messages import Answer, Command, Share, Step
from geneformer_jax.common import command_line
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import show_log
from geneformer_jax.common.shares import SharedRun

# Of commands: what names a share, and what is no work that could be shared.
_NOT_SHARED = ("shard", "finish", "dry_run", "report", "verify")


def perform(command: Command, step: Step, *given: Share) -> Answer:
    """Does one step of a command in this process, and never raises.

    Args:
      command: of which this process may have made other shares; it does so of no other command.
      step: "start" (import and read flags), "begin" (check and prepare), "make" (the share that
        follows) or "finish".
      *given: (i, n) of the share.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            done = getattr(_work(command), step)(*given)
    except (InputError, OSError) as error:
        return _refusal(error)
    except Exception as error:
        return _failure(error)
    return Answer(done, tuple(printed.getvalue().splitlines()))


def _refusal(error: InputError | OSError) -> Answer:
    if isinstance(error, InputError):
        return Answer(refused=command_line.as_flags(str(error)))
    try:
        return Answer(refused=command_line.explain(error))
    except OSError:
        return _failure(error)


def _failure(error: Exception) -> Answer:
    # Whatever state it left behind is not gone on with.
    _work.cache_clear()
    lines = "".join(traceback.format_exception_only(error)).split("\n")
    return Answer(failed=next(line for line in reversed(lines) if line))


@functools.cache
def _work(command: Command) -> "_Work":
    return _Work(command)


class _Work:
    """A command in this process."""

    def __init__(self, command: Command):
        take_cores(command.cores)
        _enter(command.folder)
        module = importlib.import_module(f"geneformer_jax.{command.name}")
        sys.argv = [module.__name__, *command.arguments]
        command_line.parse(module.NEEDED)
        _require_all_of_it()
        show_log(written=command_line.as_flags)
        self._run: SharedRun = module.shared_run()
        self._is_prepared = False

    def start(self) -> bool:
        """Has been done by now; a worker may do so while another begins."""
        return True

    def begin(self) -> bool:
        """Prepares, unless the output is there; returns whether it is."""
        if self._run.is_complete():
            return True
        self._prepare()
        return False

    def make(self, share: Share) -> bool:
        """Makes a share; see `SharedRun.make`."""
        self._prepare()
        return self._run.make(share)

    def finish(self) -> bool:
        """Joins the shares."""
        self._prepare()
        self._run.finish()
        return True

    def _prepare(self) -> None:
        if not self._is_prepared:
            self._run.prepare()
            self._is_prepared = True


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError:
        raise InputError(
            f"a worker on {os.uname().nodename} does not see the folder {folder}; begin in one "
            "that all machines of the cluster see under the same path"
        ) from None


def _require_all_of_it() -> None:
    wrong = [name for name in _NOT_SHARED if name in flags.FLAGS and flags.FLAGS[name].value]
    if wrong:
        raise InputError(
            f"`{wrong[0]}` is of one process, not of a whole cluster; leave it out, or run the "
            "command itself"
        )
