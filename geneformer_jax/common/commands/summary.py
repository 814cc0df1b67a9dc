"""What a command did, as one JSON document on standard output: for programs that run it."""

import contextlib
import io
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from geneformer_jax.common.commands.about import VERSION
from geneformer_jax.common.provenance import FILE_NAME, provenance_beside


class Summary:
    """Sends all that is printed to standard error, and prints the document at the end.

    Attributes:
      outputs: of the command, by flag.
      facts: name -> what else the document tells.
    """

    def __init__(self, command: str):
        """Begins to count the seconds of a command."""
        self.outputs: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self._command, self._began = command, time.monotonic()
        self._error: str | None = None
        self._lines = _Lines()
        self._redirected: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def __enter__(self) -> "Summary":
        self._redirected = contextlib.redirect_stdout(self._lines)
        self._redirected.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._redirected.__exit__(kind, error, trace)
        status = 0 if error is None else 1
        if isinstance(error, SystemExit):
            status = error.code
        elif error is not None:
            self._error = f"{type(error).__name__}: {error}"
        print(json.dumps(_plain(self._document(status)), indent=2, default=str), flush=True)

    def tell_error(self, message: str) -> None:
        """Notes the line that the command ends with."""
        self._error = message

    def _document(self, status: object) -> dict[str, Any]:
        outputs = {name: path for name, path in self.outputs.items() if Path(path).exists()}
        return {
            "command": self._command,
            "version": VERSION,
            "status": status,
            "error": self._error,
            "seconds": round(time.monotonic() - self._began, 3),
            "outputs": outputs,
            "provenance": _provenance_of(outputs.values()),
            "messages": self._lines.finished,
            **self.facts,
        }


class _Lines(io.TextIOBase):
    """Writes to standard error, and keeps the lines."""

    def __init__(self) -> None:
        self.finished: list[str] = []
        self._begun = ""

    @property
    def _shown(self) -> TextIO:
        return sys.stderr

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        self.finished += lines
        return self._shown.write(text)

    def flush(self) -> None:
        self._shown.flush()


def _provenance_of(outputs: Iterable[str]) -> Any:
    """Returns the provenance of the first output that has one."""
    for path in map(Path, outputs):
        for place in (path / FILE_NAME, provenance_beside(path)):
            with contextlib.suppress(OSError, ValueError):
                return json.loads(place.read_text(encoding="utf-8"))
    return None


def _plain(value: Any) -> Any:
    """JSON has no numbers that are none, or infinite: null stands for them."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
