"""Every kind of file that is read: a small valid one of it, and what reading it gives.

Each group is a module with `READERS`, kind -> Reader. Counts are apart from models, whose libraries
take seconds to import.
"""

import importlib

from tests.campaigns.readers.reader import Reader

GROUPS = ("counts", "cells", "models", "tables")


def readers_of(group: str) -> dict[str, Reader]:
    """Returns the readers of a group, by kind of file."""
    return importlib.import_module(f"{__name__}.{group}").READERS
