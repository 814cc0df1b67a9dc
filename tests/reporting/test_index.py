"""The list of a folder's reports."""

from geneformer_jax.reporting.html import Report
from geneformer_jax.reporting.index import INDEX, refresh_index
from tests.helpers.pages import read_page


def report(path, title: str, conclusion: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    page = Report(title, f"About {title}.")
    if conclusion:
        page.conclude(conclusion)
    page.write(path)


def test_all_reports_of_a_folder_are_linked_with_what_they_say(tmp_path):
    report(tmp_path / "cells & more.report.html", "Embeddings", "Counts tell <more>.")
    report(tmp_path / "shifts" / "report.html", "In silico perturbation")
    report(tmp_path / "shifts" / "statistics" / "aggregate.html", "Statistics: aggregate")
    (tmp_path / "another.report.html").write_text("<title>Of someone else</title>")
    (tmp_path / "shifts.parts" / "report").mkdir(parents=True)
    for _ in range(2):
        refresh_index(tmp_path / "shifts")
    page = read_page(tmp_path / INDEX)
    assert page.addresses == [
        "cells%20%26%20more.report.html",
        "shifts/report.html",
        "shifts/statistics/aggregate.html",
    ]
    assert page.texts["a"] == ["Embeddings", "In silico perturbation", "Statistics: aggregate"]
    assert "Counts tell <more>." in page.texts["p"]
    assert "About In silico perturbation." in page.texts["p"]
    assert sorted(path.name for path in tmp_path.glob("index*")) == [INDEX]


def test_what_a_killed_process_left_of_the_list_goes(tmp_path):
    report(tmp_path / "cells.report.html", "Embeddings")
    for left in (f"{INDEX}.4242.partial", ".index.lock"):
        (tmp_path / left).write_text("of a process that was killed")
    refresh_index(tmp_path / "cells.h5ad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.report.html", INDEX]


def test_a_page_of_someone_else_is_left_as_it_is(tmp_path):
    (tmp_path / INDEX).write_text("<title>My site</title>")
    report(tmp_path / "cells.report.html", "Embeddings")
    refresh_index(tmp_path / "cells.h5ad")
    assert (tmp_path / INDEX).read_text() == "<title>My site</title>"


def test_a_folder_that_takes_no_page_fails_nothing(tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    report(tmp_path / "cells.report.html", "Embeddings")
    monkeypatch.setattr(Report, "write", full)
    refresh_index(tmp_path / "cells.h5ad")
    assert not (tmp_path / INDEX).exists()
