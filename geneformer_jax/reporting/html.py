"""Reports: one HTML file that holds its figures, its tables and how they came to be.

Nothing is fetched when such a file is opened: figures and the few lines of script that sort tables
are inside it, so it can be mailed, archived and read without a network.
"""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from geneformer_jax.common.files import atomic_write

_DOTS_PER_INCH = 144
_ROWS_SHOWN = 1000

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="summary">{summary}</p>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: #1d2330; background: #fff; }
main { max-width: 1000px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 1.25rem; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid #d5d9e2; }
.summary { color: #4a5264; margin-top: 0; }
figure { margin: 16px 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #4a5264; font-size: .9rem; text-align: left; padding: 4px 0; }
.scroll { overflow: auto; max-height: 34rem; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: 4px 14px 4px 0; text-align: left; border-bottom: 1px solid #e6e9ef; }
td { vertical-align: top; }
thead th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #1d2330; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: 0; cursor: pointer; }
th[aria-sort] button::after { content: " \\2193"; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { overflow: auto; background: #f4f6fa; padding: 12px; font-size: .82rem; }
summary { cursor: pointer; }
@media print { .scroll { max-height: none; } }
"""

# Sorts a table by the column whose heading is pressed, and the other way round when pressed again.
_SCRIPT = """
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const heading = button.parentElement, table = heading.closest("table");
  const column = heading.cellIndex, numeric = heading.classList.contains("number");
  const up = heading.getAttribute("aria-sort") === "descending" ||
    (!heading.hasAttribute("aria-sort") && !numeric);
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const content = row => {
    const cell = row.cells[column];
    return numeric ? Number(cell.dataset.value) : cell.textContent;
  };
  const missing = value => value === "" || Number.isNaN(value);
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const left = content(a), right = content(b);
    if (missing(left) || missing(right)) return missing(left) - missing(right);
    const order = numeric ? left - right : left.localeCompare(right);
    return up ? order : -order;
  });
  table.tBodies[0].append(...rows);
}));
"""


class Report:
    """A report under construction: add to it from top to bottom, then `write` it.

    Args:
      title: heading of the page.
      summary: one or two sentences below it.
    """

    def __init__(self, title: str, summary: str):
        self._title, self._summary = title, summary
        self._parts: list[str] = []

    def section(self, heading: str, text: str = "") -> None:
        """Starts a section, with an introductory paragraph if `text` is given."""
        self._parts.append(f"<h2>{html.escape(heading)}</h2>")
        if text:
            self.paragraph(text)

    def paragraph(self, text: str) -> None:
        """Adds a paragraph of plain text."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def figure(self, figure: Figure, caption: str) -> None:
        """Embeds a figure as a PNG; `caption` stands below it and is its description."""
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight")
        content = base64.b64encode(file.getvalue()).decode()
        width = round(figure.get_figwidth() * 96)
        words = html.escape(caption)
        self._parts.append(
            f'<figure><img width="{width}" alt="{words}" src="data:image/png;base64,{content}">'
            f"<figcaption>{words}</figcaption></figure>"
        )

    def table(self, table: pd.DataFrame, caption: str, whole_in: str = "") -> None:
        """Adds a table that the reader can sort by any column; its index is not shown.

        Args:
          table: numbers stand right-aligned, missing values are empty. Only the first 1,000 rows
            are shown, and the caption says so.
          caption: what the table shows.
          whole_in: name of a file that holds all rows.
        """
        shown = table.head(_ROWS_SHOWN)
        if len(shown) < len(table):
            caption += f" The first {len(shown):,} of {len(table):,} rows"
            caption += f"; all are in {whole_in}." if whole_in else "."
        columns = [shown.iloc[:, i] for i in range(shown.shape[1])]
        headings = "".join(_heading(column) for column in columns)
        rows = "".join(
            "<tr>" + "".join(cells) + "</tr>\n" for cells in zip(*map(_cells, columns), strict=True)
        )
        self._parts.append(
            f'<figure><figcaption>{html.escape(caption)}</figcaption><div class="scroll"><table>'
            f"<thead><tr>{headings}</tr></thead>\n<tbody>{rows}</tbody></table></div></figure>"
        )

    def files(self, paths: Iterable[Path | str]) -> None:
        """Adds links to files and folders that lie beside the report; hidden ones are left out."""
        names = sorted(name for name in (Path(path).name for path in paths) if name[0] != ".")
        links = (
            f'<li><a href="{html.escape(quote(name))}">{html.escape(name)}</a></li>'
            for name in names
        )
        self._parts.append(f"<h2>Files</h2><ul>{''.join(links)}</ul>")

    def provenance(self, story: Mapping[str, Any]) -> None:
        """Adds the story of an output (see `common.provenance`), folded up."""
        content = html.escape(json.dumps(story, indent=2, default=str))
        self._parts.append(
            "<h2>How this came to be</h2>"
            f"<details><summary>provenance.json</summary><pre>{content}</pre></details>"
        )

    def write(self, path: Path | str) -> None:
        """Writes the report as one HTML file, whole or not at all."""
        page = _PAGE.format(
            title=html.escape(self._title),
            summary=html.escape(self._summary),
            body="\n".join(self._parts),
            style=_STYLE,
            script=_SCRIPT,
        )
        with atomic_write(path) as aside:
            aside.write_text(page, encoding="utf-8")


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _heading(values: pd.Series) -> str:
    kind = ' class="number"' if _is_number(values) else ""
    return f'<th scope="col"{kind}><button>{html.escape(str(values.name))}</button></th>'


def _cells(values: pd.Series) -> list[str]:
    """The <td> elements of a column; numbers carry their exact value for sorting."""
    if not _is_number(values):
        return [f"<td>{'' if pd.isna(v) else html.escape(str(v))}</td>" for v in values]
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    whole = pd.api.types.is_integer_dtype(values)
    return [
        f'<td class="number" data-value="{_for_script(number)}">{_number(number, whole)}</td>'
        for number in numbers.tolist()
    ]


def _for_script(number: float) -> str:
    return repr(number).replace("inf", "Infinity")


def _number(number: float, whole: bool) -> str:
    if np.isnan(number):
        return ""
    if whole:
        return f"{int(number):,}"
    return f"{number:,.4g}" if abs(number) < 1000 else f"{number:,.0f}"
