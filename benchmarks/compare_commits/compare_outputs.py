"""Compares what two sides have written: every array, column and key, bit for bit."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from compare_files import Items, read, units

EQUAL, DIFFERS, ONLY_BEFORE, ONLY_AFTER = "equal", "differs", "only before", "only after"

# Keys and columns that are not compared: pattern of FILE:NAME, the name dotted -> reason.
IGNORED_ITEMS = {
    r"\bwritten_at$": "time of day",
    r"\b(seconds|compiling|step_s|data_wait)$": "timing",
    r"\b(cells|tokens|padded_tokens|model_flops)_per_s$": "timing",
    r"\binputs\.\d+\.(bytes|names_and_sizes_sha256)$": "size of files that tell times and paths",
    r"^dataset/again/.*\b(edges_sha256|fingerprint\.bytes)$": "of a file that tells time and paths",
}
# Items whose values are names of columns: of tables, and of h5ad files.
LISTS_OF_COLUMNS = ("columns", "@column-order")
# Files that are not compared: pattern -> reason.
IGNORED_FILES = {
    r"^log/": "what commands printed",
    r"/tensorboard/": "the numbers of metrics.jsonl, with times of day",
    r"/study\.log$": "the numbers of trials.csv, with times of day",
    r"\.pdf$": "the figure that is there as .png too, with the time of day",
    r"^dataset/again/sources/": "named by the hash of a file that tells time and paths",
}


class Explanations(NamedTuple):
    """What differs on purpose, see EXPLAINED in compare_commits.py."""

    files: list[tuple[str, str, str]]
    items: list[tuple[str, str, str, str]]
    differences: list[tuple[str, str, str]]

    def renamed_file(self, name: str) -> str:
        """Returns the name in `after` of a file of `before`."""
        for pattern, replacement, _ in self.files:
            name = re.sub(pattern, replacement, name)
        return name

    def renamed_items(self, file: str, items: Items) -> Items:
        """Returns items of `before` under their names in `after`."""
        renames = [each[1:3] for each in self.items if re.search(each[0], file)]
        return {
            _replaced(name, renames): _map(lambda each: _replaced(each, renames), value)
            if name.endswith(LISTS_OF_COLUMNS)
            else value
            for name, value in items.items()
        }

    def reason(self, file: str, item: str) -> str:
        """Returns why an item of a file differs, "" if that is not explained."""
        for file_pattern, item_pattern, reason in self.differences:
            if re.search(file_pattern, file) and re.search(item_pattern, item):
                return reason
        return ""


class Side(NamedTuple):
    """Where the outputs of a side are, and its code: paths that differ and say nothing."""

    folder: Path
    checkout: Path

    def files(self) -> dict[str, Path]:
        """Returns what is to be compared, by its path in the folder."""
        named = {str(path.relative_to(self.folder)): path for path in units(self.folder)}
        return {
            name: path
            for name, path in named.items()
            if not any(re.search(pattern, name) for pattern in IGNORED_FILES)
        }

    def read(self, path: Path) -> Items:
        """Returns what is in a file, with its own paths replaced and ignored items left out."""
        file = path.relative_to(self.folder)
        return {
            name: self._neutral(value)
            for name, value in read(path).items()
            if not any(re.search(pattern, f"{file}:{name}") for pattern in IGNORED_ITEMS)
        }

    def _neutral(self, values: np.ndarray) -> np.ndarray:
        if values.dtype != object:
            return values
        return _map(self._without_paths, values)

    def _without_paths(self, value: object) -> object:
        if not isinstance(value, str):
            return value
        return value.replace(str(self.folder), "SIDE").replace(str(self.checkout), "CHECKOUT")


class Difference(NamedTuple):
    """Where two items differ first, and by how much at most."""

    item: str
    where: str
    before: object
    after: object
    largest: float | None = None

    def __str__(self) -> str:
        largest = "" if self.largest is None else f"; largest difference {self.largest:.6g}"
        place = f"{self.item}{self.where}" or "the file"
        return f"{place}: {_shown(self.before)} | {_shown(self.after)}{largest}"


class File(NamedTuple):
    """What became of a file."""

    name: str
    status: str
    differences: list[Difference]
    reasons: list[str]

    @property
    def unexplained(self) -> list[Difference]:
        """Differences that no reason was given for."""
        return [each for each, why in zip(self.differences, self.reasons, strict=True) if not why]

    def __str__(self) -> str:
        if self.status == EQUAL:
            return f"{self.name}: {self.status}"
        wrong = self.unexplained
        where = f" in {len(wrong)} items, first {wrong[0]}" if wrong else ""
        because = "; ".join(sorted({why for why in self.reasons if why}))
        return f"{self.name}: {self.status}{where}" + (
            f" (explained: {because})" if because else ""
        )


def compare_sides(before: Side, after: Side, explained: Explanations) -> list[File]:
    """Compares all files of two sides; those of `before` are named as in `after`."""
    ours = {explained.renamed_file(name): path for name, path in before.files().items()}
    theirs = after.files()
    files = []
    for name in sorted({*ours, *theirs}):
        if name not in theirs or name not in ours:
            status = ONLY_BEFORE if name in ours else ONLY_AFTER
            whole = Difference("", "", *((name, None) if name in ours else (None, name)))
            files.append(File(name, status, [whole], [explained.reason(name, "")]))
            continue
        items = explained.renamed_items(name, before.read(ours[name])), after.read(theirs[name])
        differences = list(compare_items(*items))
        reasons = [explained.reason(name, each.item) for each in differences]
        files.append(File(name, DIFFERS if differences else EQUAL, differences, reasons))
    return files


def compare_items(before: Items, after: Items) -> Iterator[Difference]:
    """Yields the first difference of each item that differs, in the order of `before`."""
    for name in [*before, *(each for each in after if each not in before)]:
        if name not in after or name not in before:
            yield Difference(name, "", before.get(name), after.get(name))
        elif difference := compare_arrays(name, before[name], after[name]):
            yield difference


def compare_arrays(name: str, before: np.ndarray, after: np.ndarray) -> Difference | None:
    """Returns where two arrays differ first: in type, shape or bits of a value; None if nowhere."""
    for what in ("dtype", "shape"):
        if getattr(before, what) != getattr(after, what):
            return Difference(name, f".{what}", getattr(before, what), getattr(after, what))
    wrong = np.argwhere(_different(before, after))
    if not len(wrong):
        return None
    first = tuple(wrong[0].tolist())
    where = str(list(first)) if first else ""
    return Difference(name, where, before[first], after[first], _largest(before, after))


def _different(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    if before.dtype == object:
        return np.frompyfunc(_values_differ, 2, 1)(before, after).astype(bool)
    if before.dtype.kind in "USV" or before.dtype.itemsize not in (1, 2, 4, 8):
        return np.asarray(before != after)
    bits = f"u{before.dtype.itemsize}"
    views = [np.ascontiguousarray(each).reshape(each.shape).view(bits) for each in (before, after)]
    return np.asarray(views[0] != views[1])


def _values_differ(before: object, after: object) -> bool:
    both_nan = before != before and after != after
    return type(before) is not type(after) or (before != after and not both_nan)


def _largest(before: np.ndarray, after: np.ndarray) -> float | None:
    """Largest absolute difference of numbers that are there on both sides."""
    try:
        numbers = [np.asarray(each, np.float64) for each in (before, after)]
    except (TypeError, ValueError):
        return None
    known = np.isfinite(numbers[0]) & np.isfinite(numbers[1])
    return float(np.abs(numbers[0] - numbers[1])[known].max(initial=0.0))


def _replaced(name: str, renames: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _map(function, values: np.ndarray) -> np.ndarray:
    def text(value: object) -> object:
        return function(value) if isinstance(value, str) else value

    return np.frompyfunc(text, 1, 1)(values) if values.size else values


def _shown(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def summary(files: Sequence[File]) -> list[str]:
    """Returns lines: what was not compared, what is not equal, and how many files are."""
    lines = [f"not compared, {why}: items {pattern}" for pattern, why in IGNORED_ITEMS.items()]
    lines += [f"not compared, {why}: files {pattern}" for pattern, why in IGNORED_FILES.items()]
    lines += [str(file) for file in files if file.status != EQUAL]
    counted = {status: sum(file.status == status for file in files)
               for status in (EQUAL, DIFFERS, ONLY_BEFORE, ONLY_AFTER)}  # fmt: skip
    parts = ", ".join(f"{count} {status}" for status, count in counted.items())
    unexplained = sum(bool(file.unexplained) for file in files)
    return [*lines, f"{len(files)} files: {parts}; {unexplained} not explained"]
