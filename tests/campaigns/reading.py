"""Reads damaged files, one after another, in a process that may die of them.

Usage: python -m tests.campaigns.reading GROUP READER FOLDER SEED FIRST LAST. Prints a JSON line
before and after each case; see `tests.campaigns.inputs`, which starts it.
"""

import json
import random
import resource
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geneformer_jax.common.errors import InputError
from tests.campaigns.mutations import mutate
from tests.campaigns.readers import readers_of
from tests.campaigns.readers.reader import Reader, Result

# What a read of a small file may take, beside what the process had before.
RESIDENT_BYTES = 512 << 20
_ADDRESS_BYTES = 6 << 30
SECONDS = 60


def outcome(reader: Reader, path: Path, whole: Result) -> tuple[str, str]:
    """Returns ("equal", ""), ("refused", message), ("other", ""), or (fault, what is wrong)."""
    try:
        found = reader.read(path)
    except InputError as error:
        return _judge_refusal(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = [
            f"{Path(f.filename).name}:{f.lineno}" for f in where if "geneformer_jax" in f.filename
        ]
        place = ours[-1] if ours else ""
        return "traceback", f"{type(error).__name__}: {' '.join(str(error).split())[:200]} {place}"
    if same(found, whole):
        return "equal", ""
    if reader.sealed:
        changed = [name for name in whole if not same_value(found.get(name), whole[name])]
        return "silent", f"another {', '.join(changed)}"
    if reader.expected is None:
        return "other", ""
    try:
        expected = reader.expected(path)
    except Exception as error:
        what = " ".join(str(error).split())[:200]
        return "wrong", f"another library does not read it: {type(error).__name__}: {what}"
    for name, value in expected.items():
        if not np.array_equal(found[name], value):
            return "wrong", f"{name} is not as another library reads it"
    return "other", ""


def _judge_refusal(error: InputError) -> tuple[str, str]:
    message = str(error)
    if "\n" in message:
        return "several lines", message
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return "memory", message
        cause = cause.__cause__ or cause.__context__
    return "refused", message


def same(found: Result, whole: Result) -> bool:
    """Whether two readings gave the same."""
    return found.keys() == whole.keys() and all(
        same_value(found[name], value) for name, value in whole.items()
    )


def same_value(found: Any, value: Any) -> bool:
    """Whether two arrays, tables or texts are the same, their types included."""
    if isinstance(value, pd.DataFrame):
        return (
            isinstance(found, pd.DataFrame)
            and found.equals(value)
            and found.index.equals(value.index)
        )
    if isinstance(value, np.ndarray):
        return (
            isinstance(found, np.ndarray)
            and found.dtype == value.dtype
            and found.shape == value.shape
            and np.array_equal(found, value, equal_nan=value.dtype.kind == "f")
        )
    return type(found) is type(value) and found == value


def main(group: str, name: str, folder: Path, seed: int, cases: range) -> None:
    """Reads all cases; a report follows each."""
    warnings.simplefilter("ignore")
    reader = readers_of(group)[name]
    (folder / "whole").mkdir(parents=True)
    original = reader.write(folder / "whole")
    whole = reader.read(original)
    assert same(reader.read(original), whole), "two readings of one file differ"
    _limit_memory()
    for case in cases:
        print(json.dumps({"case": case}), flush=True)
        path, damage = damaged_copy(original, folder / "case", f"{name}/{seed}/{case}")
        _limit_time()
        before = _resident(peak=False)
        verdict, message = outcome(reader, path, whole)
        if (taken := _resident(peak=True) - before) > RESIDENT_BYTES:
            verdict, message = "memory", f"{taken >> 20} MiB, {verdict}: {message}"
        line = {"case": case, "damage": damage, "verdict": verdict, "message": message}
        print(json.dumps(line | {"mebibytes": taken >> 20}), flush=True)


def damaged_copy(original: Path, folder: Path, seed: str) -> tuple[Path, str]:
    """Returns a copy in `folder`, which is emptied, and what was done to it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / original.name
    (shutil.copytree if original.is_dir() else shutil.copyfile)(original, path)
    return path, mutate(path, random.Random(seed))


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESS_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time() -> None:
    """Processor time until this process is killed; the one that started it watches the clock."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime) + 1 + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _resident(peak: bool) -> int:
    """Bytes in memory now; with `peak` the most there were since the last call without."""
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    key = "VmHWM:" if peak else "VmRSS:"
    return int(status.split(key)[1].split()[0]) << 10


if __name__ == "__main__":
    seed, first, last = map(int, sys.argv[4:])
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), seed, range(first, last))
