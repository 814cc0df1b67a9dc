"""Share a command out among processes of one machine or many, with Ray.

Examples:
  python -m geneformer_jax.cluster --shares=100 -- tokenize --counts=corpus/ \\
      --vocabulary=vocabulary --output=store
  python -m geneformer_jax.cluster --shares=200 --address=10.0.0.1:6379 -- perturb \\
      --checkpoint=RUN --cells=STORE --output=shifts --screen

Behind -- stand a command and its flags: tokenize, build_vocabulary, embed, perturb, attend or
predict. The output is that of one process, to the byte. Without --address Ray is started on this
machine and ended afterwards; a cluster's machines must see the same files under the same paths.
Workers that are lost are replaced, and their shares made again; after any interruption the same
command goes on. A share that fails three times is named, and all others are made.
Stopped by SIGTERM it ends with exit status 143.
"""

import signal
import sys

from absl import flags

from geneformer_jax.cluster.api import run
from geneformer_jax.common import command_line
from geneformer_jax.common.errors import InputError

FLAGS = flags.FLAGS
NEEDED = ("shares",)

flags.DEFINE_integer(
    "shares", None, "Into how many the work is cut; 20 to 50 for each worker are good.",
    lower_bound=1,
)  # fmt: skip
flags.DEFINE_string("address", "", "Of a Ray cluster, as 10.0.0.1:6379, or auto.")
flags.DEFINE_integer(
    "workers", None, "Processes at the same time; default: one for each GPU, or machine, for "
    "commands that use a model; for others one for each core.", lower_bound=1,
)  # fmt: skip
_HELP = {"--help", "-h", "--helpfull"}
_TERMINATED = 128 + signal.SIGTERM


def main(command: list[str]) -> None:
    """Runs the command that stands behind --."""
    _require_no_help(command)
    command_line.note_outputs(command)
    stopped = _ends_as_by_ctrl_c()
    try:
        run(command, shares=FLAGS.shares, workers=FLAGS.workers, address=FLAGS.address)
    except KeyboardInterrupt:
        if stopped:
            sys.exit(_TERMINATED)
        raise


def _require_no_help(command: list[str]) -> None:
    # Workers would say that there is no such flag.
    if _HELP.intersection(command[1:]):
        alone = f"python -m geneformer_jax.{command[0]} --help"
        raise InputError(f"help of {command[0]} is told by the command itself: {alone}")


def _ends_as_by_ctrl_c() -> list[int]:
    """Has SIGTERM end the command in good order; returns a list that it is put into then.

    Ray lets no SystemExit through that is raised while it waits.
    """
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    return stopped


def _cut(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Cuts a command line at its first --."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], arguments[end + 1 :]


if __name__ == "__main__":
    sys.argv, behind = _cut(sys.argv)
    command_line.run(lambda: main(behind), needed=NEEDED)
