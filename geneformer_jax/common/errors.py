"""The one exception for bad input, how it suggests what was meant; and Ctrl-C, never lost."""

import difflib
import signal
import threading
from collections.abc import Iterable
from types import FrameType

_interrupted = threading.Event()


class InputError(ValueError):
    """Bad input from the user.

    The message is one line that names the value, the rule it breaks and the remedy. Commands print
    it and exit with status 1; in a notebook it is an ordinary ValueError. What files and arguments
    are called may hold ends of lines and codes that terminals obey: these are shown, not sent.
    """

    def __init__(self, message: str):
        super().__init__(_shown(message))


def _shown(message: str) -> str:
    if message.isprintable():
        return message
    shown = (each if each.isprintable() else ascii(each)[1:-1] for each in message)
    return "".join(shown)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns ' (did you mean "a" or "b"?)' for the known names nearest to `name`, or ''."""
    # Whatever their case: "cd74" is near "CD74".
    by_lower = {str(each).lower(): each for each in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=3)
    if not near:
        return ""
    return " (did you mean " + " or ".join(f'"{by_lower[each]}"' for each in near) + "?)"


def note_interrupts() -> None:
    """Notes Ctrl-C from now on, beside raising KeyboardInterrupt as Python does.

    Python drops one that is raised within what a library has called as garbage is collected, as JAX
    has, and the command would go on to its end.
    """
    _interrupted.clear()
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note_interrupt)


def _note_interrupt(number: int, frame: FrameType | None) -> None:
    _interrupted.set()
    signal.default_int_handler(number, frame)


def was_interrupted() -> bool:
    """Whether Ctrl-C came since `note_interrupts`."""
    return _interrupted.is_set()


def require_going_on() -> None:
    """Raises KeyboardInterrupt if Ctrl-C came and ended nothing; asked again and again by loops."""
    if was_interrupted():
        raise KeyboardInterrupt
