"""The one exception for bad input, and how it suggests what was meant."""

import difflib
from collections.abc import Iterable


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
