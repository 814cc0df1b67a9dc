"""What a campaign knows of a kind of file."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Plain arrays, texts and tables, so that two readings can be compared.
Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A kind of file.

    Attributes:
      write: makes a valid file in an empty folder and returns the path that is damaged.
      read: what is compared of the file at a path.
      expected: what another library reads there of what `read` gives; None where there is none.
      sealed: whether checksums cover all of it, so that whatever is read is what was written.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Result]
    expected: Callable[[Path], Result] | None = None
    sealed: bool = False
