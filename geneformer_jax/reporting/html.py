"""Reports: one HTML file that holds its figures, its tables and its provenance.

Nothing is fetched when such a file is opened: libraries, figures and data are inside it, so it can
be mailed, archived and read without a network. The template is report.html, its script report.js;
the libraries lie in `assets`. A reader without JavaScript, and a printer, get the figures as
pictures and the first rows of the tables.
"""

import base64
import functools
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

import geneformer_jax
from geneformer_jax.common.files import atomic_write, is_aside, slug
from geneformer_jax.reporting.figures import Drawing, dots_per_inch
from geneformer_jax.reporting.tables import table_part

if TYPE_CHECKING:
    import altair as alt

GENERATOR = "geneformer_jax"
_DOTS_PER_INCH = 144
# As in the template.
_SLOT, _END_OF_SLOT = "<!-- further pages -->", "<!-- end of further pages -->"
_TABLE_STYLES = (
    "dataTables.dataTables.min.css",
    "buttons.dataTables.min.css",
    "columnControl.dataTables.min.css",
)
_TABLE_SCRIPTS = (
    "dataTables.min.js",
    "dataTables.buttons.min.js",
    "dataTables.columnControl.min.js",
)
_CHART_SCRIPTS = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("geneformer_jax.reporting", "."),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}


class Link(NamedTuple):
    """A link to another report: its path from here, its title and what it says."""

    path: str
    title: str
    text: str


class Report:
    """A report under construction: add to it from top to bottom, then `write` it.

    Args:
      title: heading of the page.
      summary: one or two sentences below it.
    """

    def __init__(self, title: str, summary: str):
        self._title, self._summary = title, summary
        self._conclusions: list[str] = []
        # (kind, content) as the template names them.
        self._parts: list[tuple[str, Any]] = []

    def conclude(self, text: str) -> None:
        """Adds a sentence on what to conclude, shown at the top and where reports are listed."""
        self._conclusions.append(text)

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

    def figure(
        self,
        figure: Figure,
        caption: str,
        chart: "alt.TopLevelMixin | None" = None,
        table: str = "",
    ) -> None:
        """Adds a figure: a picture, or a chart to explore with the picture in its place on paper.

        Args:
          figure: the picture, embedded as a PNG.
          caption: shown below it, and its alternative text.
          chart: of `reporting.charts`.
          table: name of the table in the report whose rows the points of the chart stand for.
        """
        file = io.BytesIO()
        dots = dots_per_inch(figure, _DOTS_PER_INCH)
        figure.savefig(file, format="png", dpi=dots, bbox_inches="tight")
        part = {
            "png": base64.b64encode(file.getvalue()).decode(),
            "width": round(figure.get_figwidth() * 96),
            "caption": caption,
            "spec": None,
        }
        if chart is not None:
            spec = self._without_data(_specification(chart)) | {"description": caption}
            explorable = any(each["name"] == "brush" for each in spec.get("params", ()))
            part |= {"spec": spec, "explorable": explorable, "table": table, "file": slug(caption)}
        self._parts.append(("figure", part))

    def draw(self, drawing: Drawing) -> None:
        """Adds a drawing, see `figure`."""
        self.figure(drawing.figure, drawing.caption, drawing.chart, drawing.table)

    def table(
        self,
        table: pd.DataFrame,
        caption: str,
        whole_in: str = "",
        *,
        name: str = "",
        key: str = "",
        words: Mapping[str, str] | None = None,
        meanings: Mapping[str, str] | None = None,
    ) -> None:
        """Adds a table that the reader can sort, search, filter and download; without its index.

        Args:
          table: numbers are right-aligned, missing values are empty. Only the first 20,000 rows are
            shown, which the caption mentions.
          caption: what the table shows.
          whole_in: name of a file that holds all rows.
          name: by which figures refer to it, and of its download.
          key: column that says which row a point of such a figure is.
          words: column -> heading; by default its name, with spaces.
          meanings: column -> what it says, shown when the heading is pointed at.
        """
        part = table_part(
            table, caption, whole_in=whole_in, name=name, key=key, words=words, meanings=meanings
        )
        self._parts.append(("table", part))

    def files(self, paths: Iterable[Path | str]) -> None:
        """Adds links to files and folders that lie beside the report.

        Hidden ones are left out, and what a killed process had begun to write.
        """
        whole = (Path(path).name for path in paths if not is_aside(path))
        names = sorted(name for name in whole if name[0] != ".")
        self.section("Files")
        self._parts.append(("files", names))

    def provenance(self, provenance: Mapping[str, Any]) -> None:
        """Adds the provenance of an output (see `common.provenance`), folded up."""
        self.section("How this came to be")
        self._parts.append(("provenance", json.dumps(provenance, indent=2, default=str)))

    def links(self, links: Iterable[Link]) -> None:
        """Adds links to other reports, each with what it says."""
        self._parts.append(("links", list(links)))

    def write(self, path: Path | str, owner: str = "") -> None:
        """Writes the report as one HTML file, whole or not at all; see `atomic_write`."""
        kinds = {kind for kind, _ in self._parts}
        # Pages that come later into a slot hold charts and tables too.
        charts = bool(kinds & {"dataset", "pages"})
        script = _script(charts) if charts or "table" in kinds else ""
        page = _TEMPLATES.get_template("report.html").render(
            title=self._title,
            summary=self._summary,
            conclusions=self._conclusions,
            parts=self._parts,
            generator=f"{GENERATOR} {geneformer_jax.__version__}",
            style=Markup(_style() if script else _own("report.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
        with atomic_write(path, owner) as aside:
            aside.write_text(page, encoding="utf-8")

    def _without_data(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Takes the data out of a chart, so that the page holds once what several charts draw."""
        known = {part["name"] for kind, part in self._parts if kind == "dataset"}
        for name, rows in spec.pop("datasets", {}).items():
            if name not in known:
                names = rows[0] if rows else ()
                columns = {column: [row[column] for row in rows] for column in names}
                self._parts.append(("dataset", {"name": name, "columns": columns}))
        return spec


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


def _specification(chart: "alt.TopLevelMixin") -> dict[str, Any]:
    """The Vega-Lite specification of a chart, with all its rows in `datasets`."""
    import altair as alt

    with alt.data_transformers.enable("default", max_rows=None):
        spec = chart.to_dict()
    for unused in ("$schema", "config"):
        spec.pop(unused, None)
    return spec


@functools.cache
def _style() -> str:
    return "\n".join([*map(_asset, _TABLE_STYLES), _own("report.css")])


@functools.cache
def _script(charts: bool) -> str:
    libraries = [*(_CHART_SCRIPTS if charts else ()), *_TABLE_SCRIPTS]
    licences = f"/*\n{_asset('LICENSES.txt')}\n*/"
    return ";\n".join([licences, *map(_asset, libraries), _own("report.js")])


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _own(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
