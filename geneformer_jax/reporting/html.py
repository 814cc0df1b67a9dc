"""Reports: one HTML file that holds its figures, its tables and its provenance.

Nothing is fetched when such a file is opened: figures and the script that sorts tables are inside
it, so it can be mailed, archived and read without a network. The template is report.html.
"""

import base64
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from geneformer_jax.common.files import atomic_write

_DOTS_PER_INCH = 144
# As in the template.
_SLOT, _END_OF_SLOT = "<!-- further pages -->", "<!-- end of further pages -->"
_MAX_ROWS = 1000
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("geneformer_jax.reporting", "."),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)


class Report:
    """A report under construction: add to it from top to bottom, then `write` it.

    Args:
      title: heading of the page.
      summary: one or two sentences below it.
    """

    def __init__(self, title: str, summary: str):
        self._title, self._summary = title, summary
        # (kind, content) as the template names them.
        self._parts: list[tuple[str, Any]] = []

    def slot(self) -> None:
        """Leaves a place for other pages; see `include_pages`."""
        self._parts.append(("pages", None))

    def section(self, heading: str, text: str = "") -> None:
        """Starts a section, with an introductory paragraph if `text` is given."""
        self._parts.append(("heading", heading))
        if text:
            self.paragraph(text)

    def paragraph(self, text: str) -> None:
        """Adds a paragraph of plain text."""
        self._parts.append(("paragraph", text))

    def figure(self, figure: Figure, caption: str) -> None:
        """Embeds a figure as a PNG; `caption` is shown below it and is its alternative text."""
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight")
        content = base64.b64encode(file.getvalue()).decode()
        width = round(figure.get_figwidth() * 96)
        self._parts.append(("figure", {"png": content, "width": width, "caption": caption}))

    def table(self, table: pd.DataFrame, caption: str, whole_in: str = "") -> None:
        """Adds a table that the reader can sort by any column; its index is not shown.

        Args:
          table: numbers are right-aligned, missing values are empty. Only the first 1,000 rows are
            shown, which the caption mentions.
          caption: what the table shows.
          whole_in: name of a file that holds all rows.
        """
        shown = table.head(_MAX_ROWS)
        if len(shown) < len(table):
            caption += f" The first {len(shown):,} of {len(table):,} rows"
            caption += f"; all are in {whole_in}." if whole_in else "."
        # By position, since two columns may have the same name.
        columns = [shown.iloc[:, i] for i in range(shown.shape[1])]
        headings = [{"name": str(each.name), "is_number": _is_number(each)} for each in columns]
        rows = list(zip(*map(_cells, columns), strict=True))
        self._parts.append(("table", {"caption": caption, "columns": headings, "rows": rows}))

    def files(self, paths: Iterable[Path | str]) -> None:
        """Adds links to files and folders that lie beside the report; hidden ones are left out."""
        names = sorted(name for name in (Path(path).name for path in paths) if name[0] != ".")
        self.section("Files")
        self._parts.append(("files", names))

    def provenance(self, provenance: Mapping[str, Any]) -> None:
        """Adds the provenance of an output (see `common.provenance`), folded up."""
        self.section("How this came to be")
        self._parts.append(("provenance", json.dumps(provenance, indent=2, default=str)))

    def write(self, path: Path | str) -> None:
        """Writes the report as one HTML file, whole or not at all."""
        template = _TEMPLATES.get_template("report.html")
        page = template.render(title=self._title, summary=self._summary, parts=self._parts)
        with atomic_write(path) as aside:
            aside.write_text(page, encoding="utf-8")


def include_pages(path: Path, others: Iterable[Path]) -> None:
    """Puts what other reports hold into the slot of a report, in place of what is there.

    Their titles become headings of sections. A report without a slot stays as it is.

    Args:
      path: of the report.
      others: of reports; each begins with its title.
    """
    page = path.read_text(encoding="utf-8")
    before, slot, rest = page.partition(_SLOT)
    if not slot:
        return
    behind = rest.partition(_END_OF_SLOT)[2]
    bodies = [_as_section(other.read_text(encoding="utf-8")) for other in others]
    with atomic_write(path) as aside:
        aside.write_text("".join([before, _SLOT, *bodies, _END_OF_SLOT, behind]), encoding="utf-8")


def _as_section(page: str) -> str:
    body = page.partition("<main>")[2].partition("</main>")[0]
    return body.replace("h2>", "h3>").replace("h1>", "h2>")


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _cells(values: pd.Series) -> list[tuple[str, str | None]]:
    """What a column shows, and the exact values of numbers as JavaScript writes them, else None."""
    if not _is_number(values):
        return [("" if pd.isna(value) else str(value), None) for value in values]
    numbers = values.to_numpy(np.float64, na_value=np.nan).tolist()
    whole = pd.api.types.is_integer_dtype(values)
    return [
        (_readable(number, whole), repr(number).replace("inf", "Infinity")) for number in numbers
    ]


def _readable(number: float, whole: bool) -> str:
    if np.isnan(number):
        return ""
    if whole:
        return f"{int(number):,}"
    return f"{number:,.4g}" if abs(number) < 1000 else f"{number:,.0f}"
