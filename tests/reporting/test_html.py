import base64
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
    assert "default-src 'none'" in whole and not re.search(r"https?://|@import|url\(", whole)


def test_names_are_shown_as_they_are_and_never_run(tmp_path):
    hostile = "<script>alert(1)</script> {{ title }} & \"'"
    report = Report(hostile, hostile)
    report.section(hostile, hostile)
    report.table(pd.DataFrame({hostile: [hostile]}), hostile)
    report.provenance({"cells": hostile})
    page = write(report, tmp_path)
    assert page.rows == [[hostile], [hostile]]
    for element in ("title", "h1", "p", "figcaption"):
        assert "".join(page.texts[element]).startswith(hostile)
    assert json.loads("".join(page.texts["pre"])) == {"cells": hostile}
    assert len(page.texts["script"]) == 1


def test_files_beside_the_page_are_linked(tmp_path):
    report = Report("Title", "Summary.")
    report.files([tmp_path / "b & c.csv", "shifts", tmp_path / ".hidden"])
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
            "found": [True, False, True],
            "maybe": pd.array([1, None, 3], "Int64"),
        }
    )
    report.table(table, "Genes.")
    page = write(report, tmp_path)
    assert page.rows[0] == list(table.columns)
    assert page.rows[1] == ["B<b>", "12,345", "-0.1235", "inf", "True", "1"]
    assert page.rows[2] == ["A", "7", "", "0", "False", ""]
    assert page.rows[3] == ["", "0", "1,234", "-inf", "True", "3"]
    assert page.headings == [None, "number", "number", "number", None, "number"]
    assert page.values[6:12] == [None, "12345.0", "-0.123456789", "Infinity", None, "1.0"]


def test_two_columns_of_one_name_are_both_shown(tmp_path):
    report = Report("t", "s")
    report.table(pd.DataFrame([[1, "x"]], columns=["a", "a"]), "Same.")
    page = write(report, tmp_path)
    assert page.rows == [["a", "a"], ["1", "x"]]


@pytest.mark.parametrize("rows", [1000, 1001])
def test_long_tables_are_cut_and_say_so(tmp_path, rows):
    report = Report("t", "s")
    report.table(pd.DataFrame({"n": range(rows)}), "Numbers.", whole_in="numbers.parquet")
    page = write(report, tmp_path)
    assert len(page.rows) == 1001
    cut = "Numbers. The first 1,000 of 1,001 rows; all are in numbers.parquet."
    assert page.texts["figcaption"] == ["Numbers." if rows == 1000 else cut]


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
