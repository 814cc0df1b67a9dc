"""What a reader of a report sees and does, in a browser."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from geneformer_jax.reporting import charts
from geneformer_jax.reporting.html import Report, include_pages
from tests.browser.conftest import see_all

EDITS = 400
FORMULAS = ["=cmd()", "+1+1", "-2+3", "@SUM(A1)", "\tx"]
HOSTILE = [*FORMULAS, "<script>alert(1)</script>", "<img src=x onerror=alert(1)>"]
GENE, CELLS, SHIFT, FDR = "Gene_name", "N_Detections", "Shift_to_goal_end", "Goal_end_FDR"
RINGS = "svg .mark-symbol path[fill='transparent']"
LABELS = {SHIFT: "mean shift", FDR: "-log10 FDR"}


def edits(rows: int = EDITS) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    shift = rng.normal(0, 0.01, rows)
    rate = np.clip(10 ** (-400 * np.abs(shift) * rng.uniform(0, 1, rows)), 1e-12, 1)
    table = pd.DataFrame(
        {
            GENE: [f"GENE{i}" for i in range(rows)],
            "Ensembl_ID": [f"ENSG{i:011d}" for i in range(rows)],
            CELLS: rng.integers(1, 400, rows),
            SHIFT: shift,
            FDR: rate,
            "Sig": (rate < 0.05).astype(int),
        }
    )
    table.loc[: len(HOSTILE) - 1, GENE] = HOSTILE
    table.loc[rows - 1, [SHIFT, FDR]] = np.nan
    return table


def write_statistics(path, table: pd.DataFrame, title: str = "Shifts") -> None:
    still = Figure((4, 3))
    still.add_subplot().plot([1, 2])
    report = Report(title, "Edits of one run.")
    report.conclude("No gene is to be believed.")
    volcano = charts.volcano(table, SHIFT, FDR, LABELS, CELLS)
    report.figure(still, "Volcano of all edits.", volcano, "edits")
    ranked = charts.ranked(
        table, SHIFT, table["Sig"] == 1, ("mean shift", "FDR < 0.05"), CELLS, FDR
    )
    report.figure(still, "All edits by rank.", ranked, "edits")
    report.table(
        table,
        "All edits.",
        "edits.csv",
        name="edits",
        key="Ensembl_ID",
        words={GENE: "gene", CELLS: "cells"},
        meanings={CELLS: "cells of the edit"},
    )
    report.provenance({"command": "perturb"})
    report.write(path)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return edits()


@pytest.fixture
def statistics(tmp_path, table, open_page):
    write_statistics(tmp_path / "report.html", table)
    page = open_page(tmp_path / "report.html")
    see_all(page)
    return page


def column(page, place: int) -> list[str]:
    return page.locator(f"tbody tr td:nth-child({place})").all_inner_texts()


def sorted_by(page, words: str, direction: str) -> None:
    """Waits until the heading says so."""
    page.locator(f"thead th[aria-sort={direction}]", has_text=words).wait_for()


def test_columns_sort_by_value_with_missing_ones_last(statistics, table):
    heading = statistics.locator("thead th", has_text="cells")
    heading.get_by_text("cells").click()
    sorted_by(statistics, "cells", "ascending")
    assert column(statistics, 3) == [f"{n}" for n in sorted(table[CELLS])[:15]]
    heading = statistics.locator("thead th", has_text="Shift to goal end")
    for direction in ("ascending", "descending"):
        heading.get_by_label("Sort by Shift to goal end").focus()
        statistics.keyboard.press("Enter")
        sorted_by(statistics, "Shift to goal end", direction)
        outermost = table[SHIFT].min() if direction == "ascending" else table[SHIFT].max()
        assert float(column(statistics, 4)[0]) == pytest.approx(outermost, rel=1e-3)
        statistics.get_by_label("Last").click()
        assert column(statistics, 4)[-1] == ""


def test_search_and_a_filter_of_a_column_find_rows(statistics, table):
    search = statistics.locator("input[type=search]").first
    search.fill("GENE39")
    found = sorted(name for name in table[GENE] if "GENE39" in name)
    assert sorted(column(statistics, 1)) == found
    # What is found is ringed in the figure, but for the edit without a shift.
    rings = statistics.locator("figure.chart").nth(1).locator(RINGS)
    rings.first.wait_for(state="attached")
    assert rings.count() == len(found) - 1
    search.fill("")
    statistics.get_by_label("Filter cells").click()
    statistics.locator(".dtcc-dropdown select").select_option("greater")
    statistics.locator(".dtcc-dropdown input").fill("350")
    more = (table[CELLS] > 350).sum()
    statistics.locator(".dt-info", has_text=f"of {more} (of 400)").wait_for()
    assert min(map(int, column(statistics, 3))) > 350


def test_chosen_points_are_the_rows_of_the_table_and_of_its_download(statistics, table):
    live = statistics.locator("figure.chart").first
    live.scroll_into_view_if_needed()
    box = live.locator("svg.marks").bounding_box()
    statistics.keyboard.down("Shift")
    statistics.mouse.move(box["x"] + 0.08 * box["width"], box["y"] + 0.15 * box["height"])
    statistics.mouse.down()
    at = box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"]
    statistics.mouse.move(*at, steps=5)
    statistics.mouse.up()
    statistics.keyboard.up("Shift")
    said = live.locator("output")
    said.filter(has_text="chosen").wait_for()
    number = int(said.inner_text().split()[0])
    assert 0 < number < EDITS / 2
    with statistics.expect_download() as download:
        statistics.get_by_text("Download CSV").first.click()
    rows = list(csv.DictReader(download.value.path().open(encoding="utf-8")))
    assert len(rows) == number and list(rows[0]) == list(table.columns)
    exact = table.set_index("Ensembl_ID")
    height = -np.log10(exact[FDR])
    assert height[[row["Ensembl_ID"] for row in rows]].min() > height.median()
    for row in rows:
        assert float(row[SHIFT]) == exact.loc[row["Ensembl_ID"], SHIFT]
    live.get_by_text("Show all").click()
    assert "of 400" in statistics.locator(".dt-info").inner_text()


def test_a_download_holds_no_formula_and_every_row(statistics, table):
    with statistics.expect_download() as download:
        statistics.get_by_text("Download CSV").first.click()
    rows = list(csv.DictReader(download.value.path().open(encoding="utf-8", newline="")))
    assert len(rows) == EDITS
    names = [row[GENE] for row in rows[: len(HOSTILE)]]
    assert names == [f"'{name}" for name in FORMULAS] + HOSTILE[len(FORMULAS) :]
    # Negative numbers are numbers.
    assert min(float(row[SHIFT]) for row in rows[:-1]) == table[SHIFT].min()
    assert rows[-1][SHIFT] == ""


def test_pointing_at_a_dot_tells_its_gene_value_rate_and_cells(statistics, table):
    dot = statistics.locator("figure.chart").first.locator("svg .mark-symbol path").nth(20)
    dot.hover(force=True)
    told = statistics.locator("#vg-tooltip-element.visible")
    told.wait_for()
    words = told.inner_text()
    for name in ("gene", "gene id", "shift", "FDR", "cells"):
        assert name in words
    named = table[table["Ensembl_ID"].map(lambda each: each in words)]
    assert len(named) == 1 and str(named[CELLS].iloc[0]) in words


def test_zooming_shows_fewer_units_and_a_row_is_ringed(statistics):
    live = statistics.locator("figure.chart").first

    def labels() -> list[str]:
        return live.locator("svg .role-axis-label text").all_text_contents()

    before = labels()
    live.get_by_text("Zoom in").click()
    statistics.wait_for_timeout(200)
    assert labels() != before
    rings = live.locator(RINGS)
    assert rings.count() == 0
    statistics.locator("tbody tr").nth(2).focus()
    statistics.keyboard.press("Enter")
    rings.first.wait_for(state="attached")
    assert rings.count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 900, 1600])
def test_pages_fit_every_screen(tmp_path, table, open_page, width, scheme):
    write_statistics(tmp_path / "report.html", table, "Run of /" + "a_long_folder/" * 30)
    page = open_page(tmp_path / "report.html", width, scheme)
    see_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Text in figures stays as large as on a wide screen.
    size = page.locator("svg .role-axis-label text").first.evaluate(
        "text => text.getBoundingClientRect().height"
    )
    assert size > 10
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(", "))) < 200) == (scheme == "dark")


def test_without_a_script_and_in_print_there_are_pictures_and_rows(tmp_path, table, open_page):
    write_statistics(tmp_path / "report.html", table)
    page = open_page(tmp_path / "report.html", script=False)
    assert [image.is_visible() for image in page.locator("img").all()] == [True, True]
    assert page.locator("tbody tr").count() == 100
    page = open_page(tmp_path / "report.html")
    see_all(page)
    assert [image.is_visible() for image in page.locator("img").all()] == [False, False]
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("tbody tr").count() == 100
    page.emulate_media(media="print", color_scheme="dark")
    assert [image.is_visible() for image in page.locator("img").all()] == [True, True]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_hostile_names_are_text_wherever_they_are_shown(tmp_path, open_page):
    name = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    values = pd.Series([name, "B", name, "B"], name=name)
    report = Report(name, name)
    report.conclude(name)
    positions = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    chart = charts.embedding_map(positions, values, [name, "b", "c", "d"])
    report.figure(Figure((2, 2)), name, chart, name)
    report.table(pd.DataFrame({name: [name]}), name, name, name=name, key=name,
                 words={name: name}, meanings={name: name})  # fmt: skip
    report.write(tmp_path / "report.html")
    page = open_page(tmp_path / "report.html")
    see_all(page)
    assert page.locator("h1").inner_text() == page.locator("tbody td").inner_text() == name
    assert page.locator("img").count() == 1 and page.locator("script").count() == 4


def test_filters_compare_the_exact_numbers(tmp_path, open_page):
    exact = [1234.4, 1234.6, 5e-5, 5.00001e-5, np.nan, *np.arange(7.0)]
    report = Report("t", "s")
    report.table(pd.DataFrame({"value": exact}), "Numbers.")
    report.write(tmp_path / "report.html")
    page = open_page(tmp_path / "report.html")
    page.get_by_label("Filter value").click()
    for comparison, number, shown in (
        ("greater", "1234.5", ["1,235"]),
        ("less", "5.000001e-5", ["5e-5", "0"]),
        ("equal", "0", ["0"]),
    ):
        page.locator(".dtcc-dropdown select").select_option(comparison)
        page.locator(".dtcc-dropdown input").fill(number)
        page.locator(".dt-info", has_text=f"of {len(shown)} (of 12)").wait_for()
        assert column(page, 1) == shown


def test_a_figure_of_nothing_is_drawn(tmp_path, open_page):
    table = edits(10).assign(**{SHIFT: np.nan})
    write_statistics(tmp_path / "report.html", table)
    see_all(open_page(tmp_path / "report.html"))


def test_included_pages_work_like_pages_of_their_own(tmp_path, table, open_page):
    report = Report("Run", "A run.")
    report.slot()
    report.write(tmp_path / "run.html")
    write_statistics(tmp_path / "statistics.html", table)
    include_pages(tmp_path / "run.html", [tmp_path / "statistics.html"])
    page = open_page(tmp_path / "run.html")
    see_all(page)
    page.locator("input[type=search]").first.fill("GENE399")
    assert column(page, 1) == ["GENE399"]


def test_two_million_edits_make_a_page_that_says_what_it_shows(tmp_path, open_page):
    many = edits(2_000_000)
    many["Ensembl_ID"] = np.arange(len(many)).astype(str)
    write_statistics(tmp_path / "report.html", many)
    assert (tmp_path / "report.html").stat().st_size < 12_000_000
    page = open_page(tmp_path / "report.html")
    see_all(page)
    said = page.locator("figure.table figcaption").inner_text()
    assert "The first 20,000 of 2,000,000 rows; all are in edits.csv." in said
    drawn = page.locator("script[data-dataset]").first.inner_text()
    rows = json.loads(drawn)
    assert len(rows["key"]) == charts.MAX_POINTS
    strongest = (many[SHIFT].abs() * -np.log10(many[FDR])).nlargest(100).index.astype(str)
    assert set(strongest) <= set(rows["key"])


def test_twenty_thousand_cells_are_chosen_in_a_map(tmp_path, open_page):
    rng = np.random.default_rng(0)
    cells = [f"CELL{i}" for i in range(20_000)]
    positions = rng.normal(size=(len(cells), 2)).astype(np.float32)
    kinds = pd.Series(rng.choice(["B cell", "NK", "T cell"], len(cells)), name="kind")
    report = Report("Embeddings", "Cells.")
    for values in (kinds, pd.Series(rng.gamma(3, 100, len(cells)), name="tokens")):
        chart = charts.embedding_map(positions, values, cells)
        report.figure(Figure((2, 2)), f"Cells by {values.name}.", chart, "cells")
    report.table(pd.DataFrame({"cell": cells, "kind": kinds}), "Cells.", name="cells", key="cell")
    report.write(tmp_path / "report.html")
    page = open_page(tmp_path / "report.html")
    see_all(page)
    figure = page.locator("figure.chart").first
    figure.scroll_into_view_if_needed()
    box = figure.locator("canvas").bounding_box()
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"], steps=3)
    page.mouse.up()
    page.keyboard.up("Shift")
    figure.locator("output", has_text="chosen").wait_for()
    number = int(figure.locator("output").inner_text().split()[0].replace(",", ""))
    assert 100 < number < 10_000
    assert f"of {number:,} (of 20,000)" in page.locator(".dt-info").inner_text()


def test_heads_and_losses_are_told_and_chosen_from(tmp_path, open_page):
    heads = pd.DataFrame(
        [(model, layer, head, 0.1 * layer - 0.2 * head, f"{layer}/{head}")
         for model in ("model", "random weights") for layer in (1, 2) for head in (1, 2, 3)],
        columns=["model", "layer", "head", "effect", "words"],
    )  # fmt: skip
    heads.loc[heads["model"] != "model", "words"] = "none"
    report = Report("Heads", "Of a model.")
    chart = charts.heat_map(
        heads, ("head", "layer"), "effect", {}, choice="model", limit=0.6, text="words"
    )
    report.figure(Figure((2, 2)), "Heads.", chart)
    metrics = [{"step": step, "loss": 5 - step, "held_out_loss": 6 - step} for step in (1, 2, 3)]
    report.figure(Figure((2, 2)), "Losses.", charts.loss_curves(metrics, {"frequency": 6.0}))
    report.write(tmp_path / "report.html")
    page = open_page(tmp_path / "report.html")
    see_all(page)
    words = page.locator("figure.chart").first.locator("svg .mark-text.role-mark text")
    assert sorted(words.all_text_contents()) == ["1/1", "1/2", "1/3", "2/1", "2/2", "2/3"]
    page.get_by_label("model").select_option("random weights")
    page.locator("svg text", has_text="none").first.wait_for()
    assert set(words.all_text_contents()) == {"none"}
    legend = page.locator("figure.chart").nth(1).locator("svg .role-legend-label text")
    assert legend.all_text_contents() == ["training", "held out", "frequency"]
