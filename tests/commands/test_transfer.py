"""The transfer command: what it writes, going on after a kill, and what it refuses."""

import json

import anndata as ad
import pandas as pd
import pytest

from geneformer_jax.common.command_line import INTERRUPTED
from geneformer_jax.embedding import embedder
from geneformer_jax.label_transfer import output
from geneformer_jax.model import pretrained
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.pages import read_page
from tests.helpers.toy import toy_cells, toy_model


@pytest.fixture
def transfer(tmp_path, monkeypatch, capsys):
    """The command; each call returns (exit status, output, error)."""
    model = toy_model(positions=160, layers=1, initializer_range=0.2)
    # A map of cells takes long to compile.
    monkeypatch.setattr(output, "_FEWEST_DRAWN", 1_000)
    monkeypatch.setattr(pretrained, "load_model", lambda path, quantize=None: model)
    cells = toy_cells()
    cells[:160].copy().write_h5ad(tmp_path / "reference.h5ad")
    cells[160:].copy().write_h5ad(tmp_path / "query.h5ad")

    def call(**changed):
        usual = {"checkpoint": "toy", "reference": tmp_path / "reference.h5ad", "label": "kind",
                 "query": tmp_path / "query.h5ad", "output": tmp_path / "out.h5ad"}  # fmt: skip
        arguments = [f"--{name}={value}" for name, value in (usual | changed).items() if value]
        return run_command("transfer", arguments, monkeypatch, capsys)

    return call


def test_labels_tables_and_report(transfer, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(embedder.Embedder, "rows", _die_at_the_second_part(embedder.Embedder.rows))
        assert transfer()[0] == INTERRUPTED
    assert (tmp_path / "out.reference.parts").is_dir() and not (tmp_path / "out.h5ad").exists()
    status, printed, error = transfer()
    assert status == 0, error
    assert "held-out reference (160 cells): macro F1" in printed
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    assert found.n_obs == 80 and {"kind", "transferred_label", "trusted"} <= set(found.obs)
    scores = pd.read_csv(tmp_path / "out.scores.csv")
    assert len(scores) == 14 and not (tmp_path / "out.reference.parts").exists()
    provenance = json.loads((tmp_path / "out.provenance.json").read_text())
    assert provenance["counts"]["query"]["cells"] == 80
    page = read_page(tmp_path / "out.report.html")
    assert any("do not trust their labels" in text for text in page.texts["p"])
    assert len(page.images) == 1
    # The interrupted run ends as one that was not.
    assert transfer(output=tmp_path / "whole.h5ad")[0] == 0
    pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / "whole.h5ad").obs, found.obs)
    assert "nothing to do" in transfer()[1]
    status, _, error = transfer(precision="bfloat16")
    assert (status, "(precision = 'float32', not 'bfloat16')" in error) == (1, True)
    assert_one_line(error)


def _die_at_the_second_part(rows):
    made = []

    def dying(self, *given):
        if made:
            raise KeyboardInterrupt
        made.append(1)
        return rows(self, *given)

    return dying


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"label": "knid"}, 'did you mean "kind"'),
        ({"label": ""}, "--label must be given"),
        ({"output": "labels.csv"}, "--output labels.csv must end in .h5ad"),
        ({"reference": "none.h5ad"}, "none.h5ad is no folder"),
        ({"query": "none.h5ad"}, "none.h5ad is no folder"),
    ],
)
def test_bad_input_ends_in_one_line(transfer, changed, words):
    status, _, error = transfer(**changed)
    assert (status, words in error) == (1, True), error
    assert_one_line(error)
