import base64
import hashlib
import io
import json
import re
import tomllib
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import geneformer_jax
from geneformer_jax.common.files import aside_of
from geneformer_jax.reporting import charts, html
from geneformer_jax.reporting.html import Report, include_pages
from tests.helpers.pages import Page, read_page


def write(report: Report, tmp_path) -> Page:
    report.write(tmp_path / "report.html")
    return read_page(tmp_path / "report.html")


def test_other_pages_are_put_into_the_slot_in_place_of_earlier_ones(tmp_path):
    report = Report("Run", "A run.")
    report.slot()
    report.section("Rest")
    report.write(tmp_path / "run.html")
    for name in ("first", "second"):
        other = Report(name, f"About {name}, h2> and <main>.")
        other.section(f"Of {name}")
        other.write(tmp_path / f"{name}.html")
    include_pages(tmp_path / "run.html", [tmp_path / "first.html"])
    include_pages(tmp_path / "run.html", [tmp_path / "second.html", tmp_path / "first.html"])
    page = read_page(tmp_path / "run.html")
    assert page.texts["h1"] == ["Run"]
    assert page.texts["h2"] == ["second", "first", "Rest"]
    assert page.texts["h3"] == ["Of second", "Of first"]
    assert "About first, h2> and <main>." in page.texts["p"]


def test_a_page_without_a_slot_stays_as_it_is(tmp_path):
    Report("Run", "A run.").write(tmp_path / "run.html")
    before = (tmp_path / "run.html").read_bytes()
    include_pages(tmp_path / "run.html", [tmp_path / "run.html"])
    assert (tmp_path / "run.html").read_bytes() == before


def test_a_page_holds_all_it_needs_and_asks_for_nothing(tmp_path):
    report = Report("Shifts", "Two <cells> & more.")
    figure = Figure(figsize=(4, 3))
    figure.add_subplot().plot([1, 2])
    report.section("Results", "What was found.")
    report.figure(figure, 'A "line".')
    report.table(pd.DataFrame({"gene": ["A"], "shift": [0.5]}), "Shifts.")
    report.provenance({"command": "perturb", "counts": {"cells": 3}})
    page = write(report, tmp_path)
    assert page.texts["title"] == page.texts["h1"] == ["Shifts"]
    assert "".join(page.texts["p"]).startswith("Two <cells> & more.")
    assert page.texts["h2"] == ["Results", "How this came to be"]
    (image,) = page.images
    assert image["alt"] == 'A "line".'
    kind, content = image["src"].split(",", 1)
    assert kind == "data:image/png;base64"
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(content)))
    assert pixels.shape[1] > 400 and np.ptp(pixels[..., :3]) > 0.5
    assert all(address.startswith("data:") for address in page.addresses)
    assert json.loads("".join(page.texts["pre"])) == {"command": "perturb", "counts": {"cells": 3}}
    whole = (tmp_path / "report.html").read_text()
    assert "default-src 'none'" in whole
    # Libraries name addresses in their notices; what loads would be a tag, a style or an import.
    (style,) = page.texts["style"]
    assert not re.search(r"@import|url\((?!data:)", style)
    assert not re.search(r"<(link|iframe|object|embed)\b|<script[^>]*\bsrc=", whole)
    assert len(whole.encode()) < 1_500_000


def test_only_the_script_of_the_page_may_run(tmp_path):
    report = Report("t", "s")
    report.slot()
    page = write(report, tmp_path)
    (script,) = page.texts["script"]
    whole = (tmp_path / "report.html").read_text()
    found = re.search(r"script-src 'sha256-([^']+)' 'unsafe-eval'\"", whole)
    assert found[1] == base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "vegaEmbed" in script and "DataTable" in script


def test_names_are_shown_as_they_are_and_never_run(tmp_path):
    hostile = "<script>alert(1)</script> {{ title }} & \"'"
    report = Report(hostile, hostile)
    report.section(hostile, hostile)
    report.table(pd.DataFrame({hostile: [hostile]}), hostile)
    report.provenance({"cells": hostile})
    page = write(report, tmp_path)
    assert page.rows == [[hostile.replace("_", " ")], [hostile]]
    for element in ("title", "h1", "p", "figcaption"):
        assert "".join(page.texts[element]).startswith(hostile)
    assert json.loads("".join(page.texts["pre"])) == {"cells": hostile}
    data, script = page.texts["script"]
    assert json.loads(data)["rows"] == [[hostile]]
    assert "<" not in data and "alert(1)" not in script


def test_files_beside_the_page_are_linked(tmp_path):
    report = Report("Title", "Summary.")
    left_by_a_killed_run = aside_of(tmp_path / "report.html")
    report.files([tmp_path / "b & c.csv", "shifts", tmp_path / ".hidden", left_by_a_killed_run])
    page = write(report, tmp_path)
    assert page.addresses == ["b%20%26%20c.csv", "shifts"]
    assert page.texts["a"] == ["b & c.csv", "shifts"]


def test_tables_keep_exact_values_for_sorting_and_show_readable_ones(tmp_path):
    report = Report("t", "s")
    table = pd.DataFrame(
        {
            "gene": ["B<b>", "A", None],
            "cells": [12345, 7, 0],
            "shift": [-0.123456789, np.nan, 1234.5],
            "limit": [np.inf, 0.0, -np.inf],
            "is_found": [True, False, True],
            "maybe": pd.array([1, None, 3], "Int64"),
        }
    )
    report.table(table, "Genes.", words={"maybe": "cells with it"}, meanings={"maybe": "or not"})
    page = write(report, tmp_path)
    assert page.rows[0] == ["gene", "cells", "shift", "limit", "is found", "cells with it"]
    assert page.rows[1] == ["B<b>", "12,345", "-0.1235", "inf", "True", "1"]
    assert page.rows[2] == ["A", "7", "", "0", "False", ""]
    assert page.rows[3] == ["", "0", "1,234", "-inf", "True", "3"]
    assert page.headings == [None, "number", "number", "number", None, "number"]
    data = json.loads(page.texts["script"][0])
    assert data["rows"] == [
        ["B<b>", 12345, -0.123456789, "Infinity", "True", 1.0],
        ["A", 7, None, 0.0, "False", None],
        ["", 0, 1234.5, "-Infinity", "True", 3.0],
    ]
    assert [each["name"] for each in data["columns"]] == list(table.columns)
    assert data["columns"][5]["meaning"] == "or not"


def test_two_columns_of_one_name_are_both_shown(tmp_path):
    report = Report("t", "s")
    report.table(pd.DataFrame([[1, "x"]], columns=["a", "a"]), "Same.")
    page = write(report, tmp_path)
    assert page.rows == [["a", "a"], ["1", "x"]]
    assert json.loads(page.texts["script"][0])["rows"] == [[1, "x"]]


@pytest.mark.parametrize("rows", [20_000, 20_001])
def test_long_tables_are_cut_and_say_so(tmp_path, rows):
    report = Report("t", "s")
    report.table(pd.DataFrame({"n": range(rows)}), "Numbers.", whole_in="numbers.parquet")
    page = write(report, tmp_path)
    assert len(json.loads(page.texts["script"][0])["rows"]) == 20_000
    # As much as is read without a script.
    assert len(page.rows) == 101
    cut = "Numbers. The first 20,000 of 20,001 rows; all are in numbers.parquet."
    assert page.texts["figcaption"] == ["Numbers." if rows == 20_000 else cut]


def test_charts_of_the_same_rows_share_them(tmp_path):
    table = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0], "Gene_name": ["</script>", "B"],
                          "Ensembl_ID": ["E1", "E2"]})  # fmt: skip
    chart = charts.scatter(table, "x", "y", {"x": "rank", "y": "shift"})
    report = Report("t", "s")
    for caption in ("First.", "Second."):
        report.figure(Figure(figsize=(2, 2)), caption, chart, "genes")
    page = write(report, tmp_path)
    rows, *specs, _ = page.texts["script"]
    columns = {"key": ["E1", "E2"], "name": ["</script>", "B"], "x": [1, 2], "y": [3, 4]}
    assert json.loads(rows) == columns
    assert [json.loads(spec)["description"] for spec in specs] == ["First.", "Second."]
    assert all("datasets" not in json.loads(spec) for spec in specs)
    # The pictures stay for paper and for readers without a script.
    assert [image["alt"] for image in page.images] == ["First.", "Second."]


def test_the_libraries_in_a_page_are_as_released():
    assets = Path(html.__file__).parent / "assets"
    listed = pd.read_csv(assets / "versions.tsv", sep="\t").set_index("file")
    files = {path.name for path in assets.iterdir()} - {"versions.tsv", "LICENSES.txt"}
    assert set(listed.index) == files
    for name, sha256 in listed["sha256"].items():
        assert hashlib.sha256((assets / name).read_bytes()).hexdigest() == sha256
    licences = (assets / "LICENSES.txt").read_text()
    assert all(package.removesuffix("-dt") in licences for package in listed["package"])
    libraries = html._CHART_SCRIPTS + html._TABLE_SCRIPTS + html._TABLE_STYLES
    assert set(libraries) == files


def test_every_file_of_the_package_is_installed():
    """Setuptools leaves out what is not Python unless pyproject.toml names it."""
    package = Path(geneformer_jax.__file__).parent
    settings = tomllib.loads((package.parent / "pyproject.toml").read_text())
    named = settings["tool"]["setuptools"]["package-data"]["geneformer_jax"]
    installed = {path for pattern in named for path in package.glob(pattern)}
    files = {path for path in package.rglob("*.*") if path.is_file() and path.suffix != ".py"}
    assert {path for path in files if path.parent.name != "__pycache__"} == installed


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    Report("old", "s").write(tmp_path / "report.html")
    report = Report("new", "lone surrogate \ud800")
    with pytest.raises(UnicodeEncodeError):
        report.write(tmp_path / "report.html")
    assert "old" in (tmp_path / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
