"""Tables as text hold no formula for a spreadsheet, and are read again as they were."""

import csv
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import geneformer_jax
from geneformer_jax.common.tables import FORMULA, read_csv, read_id_table, write_csv
from geneformer_jax.finetuning.prediction.output import write_predicted
from geneformer_jax.perturbation.statistics.report import _write_table

FORMULAS = ["=1+1", "@x", "+x", "-x", "\tx", "\rx", "-", "=", "'=x", "''+x", '=HYPERLINK("u","x")']
HARMLESS = ["-1", "+2.5", "-1e-7", "'-1", "B cell", "CD4+", "a=b", "", "'x", "x\ny", "x\ry"]
PACKAGE = Path(geneformer_jax.__file__).parent


def table() -> pd.DataFrame:
    texts = FORMULAS + HARMLESS
    numbers = np.linspace(-3, 3, len(texts))
    index = pd.Index(texts[::-1], name="=name")
    return pd.DataFrame(
        {"=label": texts, "kind": pd.Categorical(texts), "shift": numbers}, index=index
    )


def cells_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_no_cell_of_a_table_is_a_formula_and_all_are_read_again(tmp_path):
    made, path = table(), tmp_path / "table.csv"
    write_csv(made, path, index=True)
    rows = cells_of(path)
    assert len(rows) == len(made) + 1
    dangerous = [cell for row in rows for cell in row if re.match(r"[=+\-@\t\r]", cell)]
    assert all(re.fullmatch(r"[+-][\d.]+(e-\d+)?", cell) for cell in dangerous)
    assert [float(row[3]) for row in rows[1:]] == made["shift"].tolist()
    read = read_csv(path, keep_default_na=False, dtype={0: str, 1: str, "kind": str})
    expected = made.reset_index().astype({"kind": object})
    pd.testing.assert_frame_equal(read, expected, check_dtype=False)


def test_a_table_without_formulas_is_as_pandas_writes_it(tmp_path):
    made = pd.DataFrame({"gene": ["A", "B"], "shift": [-0.5, np.nan], "n": pd.array([1, None])})
    write_csv(made, tmp_path / "a.csv")
    made.to_csv(tmp_path / "b.csv", index=False)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_ids_that_we_wrote_are_ids_again(suffix, tmp_path):
    path = tmp_path / f"ids{suffix}"
    ids = [text for text in FORMULAS if text == text.strip()]
    write_csv(
        pd.DataFrame({"id": ids, "class": ids}), path, sep={".csv": ",", ".tsv": "\t"}[suffix]
    )
    assert read_id_table(path)["id"].tolist() == ids


def test_predictions_and_statistics(tmp_path):
    made = table()
    write_predicted(made, tmp_path / "predicted.csv", {})
    write_csv(made, tmp_path / "expected.csv", index=True)
    assert (tmp_path / "predicted.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()
    paths, (head, rows) = _write_table(tmp_path / "shifts", [made.iloc[:9], made.iloc[9:]])
    assert pd.read_parquet(paths[0])["=label"].tolist() == made["=label"].tolist()
    assert head["=label"].tolist() == made["=label"].tolist() and rows == len(made)
    written = cells_of(paths[1])
    assert [row[0] for row in written] == [row[1] for row in cells_of(tmp_path / "expected.csv")]


def test_downloads_of_reports_know_the_same_formulas():
    (expression,) = re.findall(
        r"FORMULA = /\^(.*)/i;", (PACKAGE / "reporting/report.js").read_text()
    )
    assert expression == FORMULA.pattern
    assert all(map(FORMULA.match, FORMULAS)) and not any(map(FORMULA.match, HARMLESS))


def test_all_tables_are_written_so():
    sources = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    assert [str(path) for path, text in sources.items() if ".to_csv(" in text] == [
        str(PACKAGE / "common" / "tables.py")
    ]
