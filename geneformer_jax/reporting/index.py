"""The page that lists the reports of a folder."""

import html
import os
import re
from collections.abc import Iterator
from pathlib import Path

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import aside_of, remove
from geneformer_jax.common.log import logger
from geneformer_jax.common.workdir import one_at_a_time
from geneformer_jax.reporting.html import GENERATOR, Link, Report

INDEX = "index.html"
_LOCK = ".index.lock"
# Reports of files beside them, of folders, and of statistics within these.
_PATTERNS = ("*.report.html", "*/report.html", "*/statistics/*.html")
# Titles stand before the styles, which are long.
_HEAD_BYTES = 16_384


def refresh_index(output: Path | str) -> None:
    """Writes index.html beside an output: links to the reports of all outputs there.

    An index.html of someone else is left as it is, and a folder that cannot be written to goes
    without one: neither fails a command whose output is there.

    Args:
      output: file or folder that a command has just written, with its report.
    """
    folder = Path(output).absolute().parent
    path = folder / INDEX
    try:
        if path.exists() and _head(path) is None:
            logger.info(f"{path} is no list of reports of this package and is left as it is")
            return
        # Several commands may end at the same time.
        with one_at_a_time(folder / _LOCK):
            _write(folder, path)
    except (OSError, InputError) as error:
        logger.warning(f"no list of reports in {folder}: {error}")


def require_own_page(path: Path) -> None:
    """Checks that a report will replace no file of someone else.

    Raises:
      InputError: it would.
    """
    if path.exists() and not (path.is_file() and _head(path)):
        raise InputError(
            f"{path} is no report of this package, and the one on the output would replace it; "
            "move it, or give the output another name"
        )


def _write(folder: Path, path: Path) -> None:
    # Of processes that were killed while they wrote the list.
    for left in folder.glob(aside_of(path, "*").name):
        remove(left)
    links = list(_reports(folder))
    number = f"{len(links)} report{'' if len(links) == 1 else 's'}"
    report = Report(f"Reports in {folder.name}", f"{number} of what was made in this folder.")
    report.links(links)
    # Where files cannot be locked, several processes may be here.
    report.write(path, owner=str(os.getpid()))


def _reports(folder: Path) -> Iterator[Link]:
    paths = {path for pattern in _PATTERNS for path in folder.glob(pattern)}
    for path in sorted(paths):
        if head := _head(path):
            yield Link(path.relative_to(folder).as_posix(), *head)


def _head(path: Path) -> tuple[str, str] | None:
    """Title and description of a page; None if it is none of ours."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    if f'<meta name="generator" content="{GENERATOR} ' not in head:
        return None
    title = re.search(r"<title>(.*?)</title>", head, re.DOTALL)
    text = re.search(r'<meta name="description" content="([^"]*)">', head)
    return (html.unescape(title[1]) if title else path.name, html.unescape(text[1]) if text else "")
