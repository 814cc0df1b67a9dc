"""The list of a folder's reports."""

import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import aside_of
from geneformer_jax.reporting.html import Report
from geneformer_jax.reporting.index import INDEX, refresh_index, require_own_page
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
    aside_of(tmp_path / INDEX, "4242").write_text("of a process that was killed")
    (tmp_path / ".index.lock").touch()
    refresh_index(tmp_path / "cells.h5ad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.report.html", INDEX]


def test_a_page_of_someone_else_is_left_as_it_is(tmp_path):
    (tmp_path / INDEX).write_text("<title>My site</title>")
    report(tmp_path / "cells.report.html", "Embeddings")
    refresh_index(tmp_path / "cells.h5ad")
    assert (tmp_path / INDEX).read_text() == "<title>My site</title>"


def test_a_lock_of_someone_else_is_left_as_it_is(tmp_path):
    (tmp_path / ".index.lock").write_text("[[package]]")
    report(tmp_path / "cells.report.html", "Embeddings")
    refresh_index(tmp_path / "cells.h5ad")
    assert (tmp_path / ".index.lock").read_text() == "[[package]]"
    assert not (tmp_path / INDEX).exists()


def test_no_report_takes_the_place_of_another_file(tmp_path):
    own, other = tmp_path / "cells.report.html", tmp_path / "run.report.html"
    report(own, "Embeddings")
    other.write_text("<title>Of someone else</title>")
    for path in (own, tmp_path / "new.report.html"):
        require_own_page(path)
    for path in (other, tmp_path):
        with pytest.raises(InputError, match=r"is no report of this package.*; move it, or give"):
            require_own_page(path)


def test_a_folder_that_takes_no_page_fails_nothing(tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    report(tmp_path / "cells.report.html", "Embeddings")
    monkeypatch.setattr(Report, "write", full)
    refresh_index(tmp_path / "cells.h5ad")
    assert not (tmp_path / INDEX).exists()
