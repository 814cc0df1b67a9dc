"""A page for each command, made from its own help, as `docs/commands/NAME.md`."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

from geneformer_jax.common.commands.catalogue import command_files

# "  --name  (remark)" and, with a greater indentation, what it means.
_FLAG = re.compile(r"  (--\w+)(?:  \((.*)\))?")
_MEANING = " " * 6
_SECTIONS = {"Needed:": "## Needed", "Flags:": "## Flags"}


def setup(app: Sphinx) -> dict[str, bool]:
    """Writes the pages before Sphinx looks for them."""
    app.connect("config-inited", lambda app, _: write_pages(Path(app.srcdir) / "commands"))
    return {"parallel_read_safe": True}


def write_pages(folder: Path) -> None:
    """Writes the page of each command, and the list of them all."""
    folder.mkdir(exist_ok=True)
    names = list(command_files())
    for name in names:
        command = [sys.executable, "-m", "geneformer_jax", name, "--help"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        _write(folder / f"{name}.md", "\n".join(_page(name, told.splitlines())) + "\n")
    toctree = "\n".join(["```{toctree}", ":maxdepth: 1", "", *names, "```"])
    text = (
        "# Commands\n\nWhat `--help` prints. {doc}`../how_to/index` has examples and advice, "
        f"{{doc}}`../how_to/command_line` what all have in common.\n\n{toctree}\n"
    )
    _write(folder / "index.md", text)


def _write(path: Path, text: str) -> None:
    """Leaves a page as it is where nothing changed, so that Sphinx need not read it again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _page(name: str, told: list[str]) -> Iterator[str]:
    """Turns the lines of a help into those of a page: text, lists of flags, text."""
    first = next((n for n, line in enumerate(told) if line in _SECTIONS), len(told))
    yield from (f"# {name}", "", told[0], "", *_block(told[1:first]))
    told = told[first:]
    last = next(n for n, line in enumerate(told) if line[:1].strip() and line not in _SECTIONS)
    meaning: list[str] = []
    for line in [*told[:last], ""]:
        if line.startswith(_MEANING):
            meaning.append(line.strip())
            continue
        if meaning:
            yield from (f": {_plain(' '.join(meaning))}", "")
            meaning = []
        if line in _SECTIONS:
            yield from (_SECTIONS[line], "")
        elif flag := _FLAG.fullmatch(line):
            yield f"`{flag[1]}`" + (f" ({_plain(flag[2])})" if flag[2] else "")
    yield from _block(told[last:])


def _block(lines: list[str]) -> Iterator[str]:
    if text := "\n".join(lines).strip("\n"):
        yield from ("```{code-block} text", ":class: help", "", text, "```", "")


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, and flags in it as code."""
    escaped = re.sub(r"([<>*_\[\]{}`|])", r"\\\1", text)
    return re.sub(r"--[\w\\]+", lambda flag: f"`{flag[0].replace(chr(92), '')}`", escaped)
