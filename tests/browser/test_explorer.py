"""The explorer as its reader meets it: who is let in, what is shown, what no page can do."""

import contextlib
import http.client
import http.cookiejar
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.helpers import results_folder as made
from tests.helpers.commands import assert_one_line

PROJECT = Path(__file__).resolve().parents[2]
FIGURE = ".vega-embed canvas, .vega-embed svg.marks"
APP = PROJECT / "geneformer_jax" / "explorer" / "app.py"
# Two cores with other tests on them take long to start a page.
PATIENCE_MS = 60_000


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "geneformer_jax.explore", *arguments],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made.write_results(tmp_path_factory.mktemp("explorer") / made.HOSTILE_COLUMN)


@pytest.fixture(scope="module")
def address(folder):
    """A served folder; at the end Ctrl-C ends it as it ends other commands."""
    pytest.importorskip("marimo", reason='no marimo: pip install "geneformer_jax[explore]"')
    with start(f"--folder={folder}") as process:
        lines = [process.stdout.readline() for _ in range(2)]
        yield re.search(r"http://127\.0\.0\.1:\d+/\?access_token=\S+", lines[-1])[0]
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert_one_line(error)


@pytest.fixture
def page(browser, address):
    """An open page; fails at the end if it went elsewhere, failed or opened a dialog."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    home = address.partition("?")[0]
    allowed = (home, home.replace("http", "ws", 1), "data:", "blob:")
    page.on("request", lambda asked: asked.url.startswith(allowed) or wrong.append(asked.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    page.goto(address)
    page.locator(FIGURE).first.wait_for()
    yield page
    context.close()
    assert wrong == []


def open_section(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    page.get_by_role("tab", name=name, selected=True).wait_for()
    # Until then the tables of the section before are there.
    if title := {"Genes": "Genes", "Perturbations": "Edits"}.get(name):
        page.get_by_role("heading", name=title, exact=True).wait_for()


def choose_row(table, words: str) -> None:
    table.locator("tbody tr", has_text=words).first.get_by_role("checkbox").click()


def shown_column(table, place: int) -> list[str]:
    return table.locator(f"tbody tr td:nth-child({place})").all_inner_texts()


def drag_over(page, figure, low: tuple[float, float], high: tuple[float, float]) -> None:
    """Chooses a rectangle of a figure, given in fractions of its width and height."""
    figure.scroll_into_view_if_needed()
    box = figure.bounding_box()
    ends = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (low, high)]
    page.keyboard.down("Shift")
    page.mouse.move(*ends[0])
    page.mouse.down()
    page.mouse.move(*ends[1], steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")


def test_cells_are_coloured_and_chosen(page):
    page.get_by_text(f"All {made.CELLS} cells.").wait_for()
    drag_over(page, page.locator(FIGURE).first, (0.05, 0.05), (0.5, 0.5))
    said = page.get_by_text(re.compile(rf"^\d+ of {made.CELLS} rows are chosen"))
    said.wait_for()
    chosen = int(said.inner_text().split()[0])
    assert 0 < chosen < made.CELLS
    page.get_by_text(f"{chosen} rows,").wait_for()
    field = page.get_by_placeholder("id or symbol")
    field.fill("GENEX")
    field.press("Enter")
    page.get_by_text('"GENEX" is no gene of the vocabulary').wait_for()
    field.fill("GENE3")
    field.press("Enter")
    page.get_by_text(f"All {made.CELLS} cells.").wait_for()
    page.locator(FIGURE).first.wait_for()


def test_what_is_known_of_a_gene_is_shown(page):
    open_section(page, "Genes")
    page.get_by_placeholder("Search").first.fill("GENE3")
    table = page.locator("table").first
    table.locator("tbody tr", has_text="GENE3").first.wait_for()
    choose_row(table, made.IDS[3])
    for title in ("Rank in store", "Nearest in genes.h5ad", "Edits that move it: shifts",
                  "Shifts when it is edited: shifts, goal state shift",
                  "Classes: classes"):  # fmt: skip
        page.get_by_role("heading", name=title).wait_for()


def test_lists_of_edits_and_of_moved_genes_lead_to_each_other(page, folder):
    from geneformer_jax.explorer.shifts import affected_by, affecting

    open_section(page, "Perturbations")
    choose_row(page.locator("table").first, "GENE2")
    page.get_by_role("heading", name="Genes that GENE2 moves").wait_for()
    moved = affected_by(folder / "shifts", made.IDS[2])
    table = page.locator("table").nth(1)
    assert shown_column(table, 2) == moved["gene"].tolist()[:10]
    choose_row(table, moved["gene_id"][1])
    page.get_by_role("heading", name=f"Edits that move {moved['gene'][1]}").wait_for()
    movers = affecting(folder / "shifts", moved["gene_id"][1])
    assert shown_column(page.locator("table").nth(2), 1) == movers["gene"].tolist()[:10]
    drag_over(page, page.locator(FIGURE).first, (0.2, 0.2), (0.8, 0.6))
    page.get_by_text(re.compile(rf"^\d+ of {made.GENES} rows are chosen")).wait_for()


def test_runs_show_their_losses(page):
    open_section(page, "Runs")
    row = page.locator("table tbody tr", has_text="run").first
    row.wait_for()
    assert row.locator("td").all_inner_texts()[:4] == ["run", "30", "4", "4.5"]
    page.locator(FIGURE).first.wait_for()


def test_names_are_text_whatever_they_look_like(page):
    page.locator("h2", has_text=made.HOSTILE_COLUMN).wait_for()
    page.locator("table td", has_text=made.HOSTILE).first.wait_for()
    # The points of a figure that is gone before it has them cannot be had any more.
    with page.expect_response(re.compile("/@file/")) as points:
        page.locator("select").nth(1).select_option(made.HOSTILE_COLUMN)
    points.value.finished()
    open_section(page, "Perturbations")
    page.get_by_placeholder("Search").first.fill("script")
    choose_row(page.locator("table").first, made.HOSTILE)
    page.get_by_role("heading", name="Genes that <script>").wait_for()
    assert page.locator("img[src=x]").count() == 0
    page.wait_for_timeout(500)


@pytest.mark.parametrize("section", ["Cells", "Genes", "Perturbations", "Runs"])
def test_a_phone_scrolls_downwards_only(page, section):
    page.set_viewport_size({"width": 400, "height": 900})
    open_section(page, section)
    page.locator("table").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def answer_of(opener, url: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, headers)
    try:
        with opener.open(request, timeout=60) as answered:
            return answered.status, answered.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except http.client.IncompleteRead as error:
        return 0, error.partial


def opener_for(address: str | None):
    """An opener that follows no redirection, let in at an address or not."""

    class Staying(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    opener = urllib.request.build_opener(Staying, cookies)
    if address:
        assert answer_of(opener, address)[0] == 303
        assert len(cookies.cookiejar) == 1
    return opener


def routes() -> list[tuple[str, str]]:
    """Every method and path that the server has, with something in the place of what varies."""
    from marimo._server.api.router import build_routes

    found = []
    for route in build_routes():
        mounted = getattr(route, "routes", None) or [route]
        prefix = route.path if mounted != [route] else ""
        for each in mounted:
            path = re.sub(r"{[^}]*}", "x", prefix + getattr(each, "path", ""))
            found += [(method, path) for method in getattr(each, "methods", None) or []]
    return found


# Pictures, fonts and programs of marimo itself, and whether it is alive.
OPEN = re.compile(r"/(health(z)?|assets/.*|favicon.*|auth/login|public-files-sw\.js|x)")
REFUSED = (303, 401, 403, 404, 405)


def test_nothing_is_told_without_the_token(address):
    home, _, query = address.partition("?")
    stranger = opener_for(None)
    for token in ("", "?access_token=wrong", f"?access_token={query[13:-1]}"):
        assert answer_of(stranger, home + token)[0] == 303
    asked = [(method, path) for method, path in routes() if not OPEN.fullmatch(path)]
    assert len(asked) > 50
    for method, path in asked:
        body = b"{}" if method not in ("GET", "HEAD") else None
        status, said = answer_of(stranger, home[:-1] + path, body)
        assert status in REFUSED or b"UNAUTHORIZED" in said, (method, path, status, said)
    port = int(home.rpartition(":")[2].strip("/"))
    assert socket_status(port, "/ws?session_id=x") != 101


def socket_status(port: int, path: str) -> int:
    """What the server answers when a websocket is asked for."""
    lines = (f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: Upgrade",
             "Upgrade: websocket", "Sec-WebSocket-Version: 13",
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", "")  # fmt: skip
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode())
        return int(connection.recv(64).split()[1])


def test_who_has_the_token_can_run_no_code_and_open_no_file(address, folder):
    secret = folder.parent / "secret.txt"
    secret.write_text("root: import marimo")
    home = address.partition("?")[0][:-1]
    reader = opener_for(address)
    kind = {"Content-Type": "application/json", "Marimo-Session-Id": "x"}
    for method, path in routes():
        if method == "POST" and path not in ("/api/kernel/function_call", "/auth/login"):
            status, _ = answer_of(reader, home + path, b"{}", **kind)
            assert status in REFUSED or path.endswith(("ui_element_value", "export/html")), path
    up, coded = "../" * 12, "..%2f" * 12
    for target in (secret, Path("/etc/passwd"), APP):
        paths = (
            f"/public/{up}{target}", f"/public/{coded}{target}", f"/assets/{coded}{target}",
            f"/@file/19-{coded}{target}", f"/{up}{target}", f"/{target}",
            f"/?file={target}", f"/og/thumbnail?file={target}",
        )  # fmt: skip
        for path in paths:
            _, said = answer_of(reader, home + path, **{"X-Notebook-Id": f"{target}"})
            for words in (b"root:", b"import marimo"):
                assert words not in said, path


@contextlib.contextmanager
def served(browser, folder: Path):
    """A page of a folder; at the end nothing but the interruption has been said."""
    pytest.importorskip("marimo", reason='no marimo: pip install "geneformer_jax[explore]"')
    with start(f"--folder={folder}") as process:
        address = [process.stdout.readline() for _ in range(2)][-1].split()[-1]
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(address)
        yield page
        context.close()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert_one_line(error)


def test_what_is_damaged_is_said_beside_what_is_whole(browser, folder, tmp_path):
    inside = tmp_path / "results"
    shutil.copytree(folder, inside)
    for name in ("shifts/statistics/goal_state_shift.parquet", "shifts/gene_shift_means.parquet",
                 "classes/predictions/Geneformer.parquet"):  # fmt: skip
        (inside / name).write_bytes(b"PAR1 and no more")
    (inside / "store" / "lengths.npy").write_bytes(b"")
    with served(browser, inside) as page:
        open_section(page, "Genes")
        choose_row(page.locator("table").first, made.IDS[3])
        page.get_by_role("heading", name="Nearest in genes.h5ad").wait_for()
        for words in ("lengths.npy", "goal_state_shift.parquet is damaged", "cannot be read"):
            page.get_by_text(words).first.wait_for()
        page.get_by_role("tab", name="Perturbations").click()
        page.get_by_text("goal_state_shift.parquet is damaged").first.wait_for()


def test_sections_without_results_say_what_makes_them(browser, tmp_path):
    made.write_run(tmp_path / "run")
    with served(browser, tmp_path) as page:
        page.get_by_text("There are no embeddings of cells").wait_for()
        open_section(page, "Genes")
        page.get_by_text("None are known here.").wait_for()
        page.get_by_role("tab", name="Perturbations").click()
        page.get_by_text("There are no perturbations").wait_for()
        open_section(page, "Runs")
        page.locator(FIGURE).first.wait_for()


@pytest.mark.parametrize("case", ["in use", "not a number", "nothing there", "no folder"])
def test_bad_input_ends_with_one_line(folder, tmp_path, case):
    pytest.importorskip("marimo", reason='no marimo: pip install "geneformer_jax[explore]"')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = {
            "in use": [f"--folder={folder}", f"--port={port}"],
            "not a number": [f"--folder={folder}", "--port=many"],
            "nothing there": [f"--folder={tmp_path}"],
            "no folder": [f"--folder={tmp_path / 'none'}"],
        }[case]
        with start(*arguments) as process:
            _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert_one_line(error)
