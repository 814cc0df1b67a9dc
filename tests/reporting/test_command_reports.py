"""Reports on pretraining, vocabularies and conversions."""

import json

import numpy as np
import pandas as pd

from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.provenance import write_provenance
from geneformer_jax.reporting.command_reports import (
    write_conversion_report,
    write_pretraining_report,
    write_vocabulary_report,
)
from tests.helpers.pages import read_page


def datasets(page) -> list[dict]:
    """The rows of charts in a page, as columns."""
    return [each for text in page.texts["script"][:-1] if "series" in (each := json.loads(text))]


def test_the_report_on_pretraining_says_what_was_learned(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    write_provenance(workdir, {"command": "pretrain"})
    metrics = [{"step": 1, "loss": 7.5}, {"step": 9, "loss": 5.25, "held_out_loss": 5.5}]
    scores = pd.DataFrame({"method": ["model", "gene frequency"], "loss": [5.5, 6.5]})
    path = write_pretraining_report(
        workdir, metrics, scores, ["the model beats it"], {"gene frequency": 6.5}
    )
    page = read_page(path)
    assert "The model beats it." in page.texts["p"] and "9 steps" in page.texts["p"][0]
    assert ["gene frequency", "6.5"] in page.rows
    (curves,) = datasets(page)
    rows = set(zip(curves["series"], curves["x"], curves["y"], strict=True))
    assert {("training", 9, 5.25), ("held out", 9, 5.5), ("gene frequency", 1, 6.5)} <= rows
    assert read_page(tmp_path / "index.html").addresses == ["run/report.html"]


def test_the_report_of_a_run_stopped_at_once_has_no_curve(tmp_path):
    write_provenance(tmp_path, {"command": "pretrain"})
    page = read_page(write_pretraining_report(tmp_path, [], None, ["it was stopped"], {}))
    assert "It was stopped." in page.texts["p"] and len(page.images) == 1


def test_reports_on_a_vocabulary_and_a_conversion_lie_beside_them(tmp_path):
    genes = np.array([f"ENSG{i:011d}" for i in range(30)])
    medians = np.linspace(0.5, 3, 30)
    vocabulary = GeneVocabulary(genes, np.array(["<b>", *"x" * 29]), medians)
    vocabulary.save(tmp_path / "genes", {"command": "build_vocabulary", "counts": {"cells": 1234}})
    page = read_page(write_vocabulary_report(tmp_path / "genes"))
    assert page.rows[0] == ["gene", "gene id", "median"]
    assert page.rows[1] == ["x", genes[-1], "3"] and page.rows[30] == ["<b>", genes[0], "0.5"]
    assert "over 1,234 cells" in page.texts["p"][1]
    target = tmp_path / "cells.dataset"
    target.mkdir()
    page = read_page(write_conversion_report(target, ["converting a", "wrote 3 cells"], {"of": 1}))
    assert "Wrote 3 cells." in page.texts["p"] and json.loads("".join(page.texts["pre"])) == {
        "of": 1
    }
    assert read_page(tmp_path / "index.html").addresses == [
        "cells.dataset.report.html",
        "genes.report.html",
    ]
    # A list of links needs no library.
    assert (tmp_path / "index.html").stat().st_size < 90_000


def test_a_loss_that_is_no_number_costs_no_report(tmp_path):
    write_provenance(tmp_path, {"command": "pretrain"})
    metrics = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("inf")}]
    (curves,) = datasets(read_page(write_pretraining_report(tmp_path, metrics, None, [], {})))
    assert curves["y"] == [None, None]
