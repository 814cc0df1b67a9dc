"""Mutations of JSON-like trees and of tables of text."""

import random
from typing import Any

VALUES = (
    None, True, False, -1, 0, 1, 7, 2**31, 2**32 + 1, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "a\nb", "../x", "/x", "é" * 300, [], {}, [[]], [None],
    [-1], [2**40], [2**40, 2**40], {"a": {}}, ["x"],
)  # fmt: skip
_FIELDS = ("", "-1", "0", "0.5", "nan", "inf", "1e400", "99999999999", "9" * 40, "x", "é", "\0")
_DEEPEST = 200


def mutate_tree(tree: Any, rng: random.Random) -> str:
    """Changes one value, key or length in nested dicts and lists, in place."""
    places = list(_places(tree))
    if not places:
        return "nothing"
    holder, key = rng.choice(places)
    value = holder[key]
    what = rng.choice(["value", "value", "value", "remove", "rename", "nest", "number", "longer"])
    if what == "number" and type(value) in (int, float):
        holder[key] = rng.choice([value + 1, value - 1, -value, value * 2, value / 2, str(value)])
    elif what == "remove":
        del holder[key]
    elif what == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif what == "nest":
        for _ in range(rng.choice([1, _DEEPEST])):
            value = [value]
        holder[key] = value
    elif what == "longer" and isinstance(value, list | str):
        holder[key] = value * 2
    else:
        what, holder[key] = "value", rng.choice(VALUES)
        return f"{what} {key} = {str(holder[key])[:20]!r}"
    return f"{what} {key}"


def _places(tree: Any):
    """Yields (dict or list, key) of everything in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def mutate_lines(text: str, rng: random.Random) -> tuple[str, str]:
    """Changes one line, or one field of it; returns the new text and what was done."""
    lines = text.splitlines()
    # Headings matter most, and are few.
    at = rng.randrange(min(4, len(lines))) if rng.random() < 0.4 else rng.randrange(len(lines))
    what = rng.choice(["field", "field", "field", "remove", "double", "swap", "join", "ending"])
    if what == "field":
        separator = next((each for each in "\t, " if each in lines[at]), " ")
        fields = lines[at].split(separator)
        fields[rng.randrange(len(fields))] = rng.choice(_FIELDS)
        lines[at] = separator.join(fields)
    elif what == "remove":
        del lines[at]
    elif what == "double":
        lines.insert(at, lines[at])
    elif what == "swap":
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif what == "join" and at + 1 < len(lines):
        lines[at] += lines.pop(at + 1)
    ending = rng.choice(["\r\n", "\r", "\n\n"]) if what == "ending" else "\n"
    return ending.join(lines) + ending, f"{what} line {at}"
