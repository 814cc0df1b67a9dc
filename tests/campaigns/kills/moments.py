"""What a process killed at a moment of its life would leave, without a process to be killed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_CALLS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir")


def moments(
    patch: pytest.MonkeyPatch, folder: Path, copies: Path, run: Callable[[], Any]
) -> list[Path]:
    """Runs something; returns copies of a folder as it was just before each change of its names.

    What was written is in the copy, flushed or not: the system keeps it, whoever dies.
    """
    kept: list[Path] = []
    copying = False

    def keep(call: Callable[..., Any]) -> Callable[..., Any]:
        def kept_before(*arguments: Any, **given: Any) -> Any:
            nonlocal copying
            if not copying:
                copying = True
                kept.append(shutil.copytree(folder, copies / f"{len(kept)}"))
                copying = False
            return call(*arguments, **given)

        return kept_before

    with patch.context() as inner:
        for name in _CALLS:
            inner.setattr(os, name, keep(getattr(os, name)))
        run()
    return kept
