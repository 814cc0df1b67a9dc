"""Names that the kernel gives to one process of a machine at a time, and frees as it ends."""

import contextlib
import errno
import hashlib
import os
import socket
from collections.abc import Iterator

from geneformer_jax.common.errors import InputError

_OF_AN_OUTPUT = "geneformer_jax-output"


def take_name(name: str) -> socket.socket:
    """Takes a name; it is this process's until what is returned is closed.

    Raises:
      OSError: another has it.
    """
    taken = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        taken.bind(f"\0{name}")
    except OSError:
        taken.close()
        raise
    return taken


@contextlib.contextmanager
def sole_command(output: str) -> Iterator[None]:
    """Keeps other cluster commands of this machine from an output, "" for none.

    Of two that hand out the same shares each is refused some that the other is making, so that
    neither might come to its end.

    Raises:
      InputError: another one is at work on it.
    """
    if not output:
        yield
        return
    # Names may have 107 letters.
    digest = hashlib.sha256(os.fsencode(os.path.realpath(output))).hexdigest()
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(take_name(f"{_OF_AN_OUTPUT}-{digest}"))
        except OSError as error:
            # Other systems than Linux have no such names: there nobody is kept out.
            if error.errno == errno.EADDRINUSE:
                raise InputError(
                    f"another process is sharing out the work on {output}; wait for it and run "
                    "the same command again, or name another output"
                ) from None
        yield
