"""Ctrl-C, which is never lost: a note of it that loops ask for."""

import signal
import threading
from types import FrameType

_interrupted = threading.Event()


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
