"""The page of a run: what its tables show first."""

import pandas as pd

from geneformer_jax.perturbation import report
from geneformer_jax.perturbation.statistics.modes.result import MIN_CELLS
from geneformer_jax.reporting.html import Report


def test_edits_in_a_few_cells_do_not_come_first(monkeypatch):
    tables = []
    monkeypatch.setattr(Report, "figure", lambda *arguments: None)
    monkeypatch.setattr(Report, "table", lambda report, table, *_, **__: tables.append(table))
    cells = [1, MIN_CELLS, MIN_CELLS - 1, 40, MIN_CELLS]
    rows = pd.DataFrame({"perturbed": list("abcde"), "perturbed_symbol": list("abcde"),
                         "mean": [9.0, 1.0, 5.0, 3.0, 2.0], "sd": 0.1, "n": cells})  # fmt: skip
    report._add_measure(Report("", ""), "state_shift", "goal", rows, None)
    assert "".join(tables[0]["perturbed"]) == "debac"
