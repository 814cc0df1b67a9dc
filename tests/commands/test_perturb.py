"""The perturb command: what it writes, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.cells import select_cells
from geneformer_jax.model import pretrained
from geneformer_jax.perturbation.api import perturb_cells
from geneformer_jax.perturbation.controls.baselines import compare_states
from tests.helpers.commands import assert_one_line
from tests.helpers.pages import assert_files_are_linked, read_page
from tests.helpers.perturb_runs import GENES, assert_same_folders, command_on_five_cells, make_model
from tests.helpers.toy import toy_cells


@pytest.fixture(scope="module")
def model() -> pretrained.PretrainedModel:
    return make_model()


@pytest.fixture
def perturb(model, toy_store, tmp_path, monkeypatch, capsys):
    return command_on_five_cells(model, toy_store.folder, tmp_path, monkeypatch, capsys)


def read(folder: Path, name: str = "shifts") -> pd.DataFrame:
    table = ds.dataset(folder / name).to_table().to_pandas()
    texts = [column for column in table if column != "value"]
    return table.astype(dict.fromkeys(texts, "object"))


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    texts = [column for column in expected if column != "value"]
    expected = expected.astype(dict.fromkeys(texts, "object"))
    pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-6)


def test_tables_edits_provenance_and_report_are_written(perturb, model, toy_store, tmp_path):
    status, output, error = perturb()
    assert status == 0, error
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "cells.parquet",
        "edits.parquet",
        "provenance.json",
        "report.html",
        "shifts",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "out"]
    found = read(out)
    same(found, perturb_cells(model, toy_store, genes=GENES, max_cells=5))
    assert len(list((out / "shifts").iterdir())) > 1
    schema = pq.read_schema(next((out / "shifts").iterdir()))
    assert str(schema.field("cell").type) == "dictionary<values=string, indices=int32, ordered=0>"
    assert str(schema.field("value").type) == "float"
    edits = pd.read_parquet(out / "edits.parquet")
    assert edits["perturbed"].tolist() == sorted(set(found["perturbed"]))
    one = found[found["measure"] == "cell_cosine"].groupby("perturbed").size()
    assert edits["cells"].tolist() == one.sort_index().tolist()
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["counts"]["edits"] == len(found) / 2
    assert provenance["counts"]["states"] is None
    assert provenance["counts"]["left_out"]["not drawn"] == 235
    page = read_page(out / "report.html")
    assert GENES[0] in {row[0] for row in page.rows}
    files = ["cells.parquet", "edits.parquet", "provenance.json", "shifts"]
    assert_files_are_linked(page, out, files)
    assert "edits (delete) in 5 of 5 cells" in output and "edits/s" in output


@pytest.mark.slow
def test_the_estimated_size_is_about_the_size_written(perturb, tmp_path):
    """Of every gene's shifts, where size matters; small tables are mostly names."""
    status, output, error = perturb("--genes=all", "--gene_shifts=full")
    assert status == 0, error
    estimated = float(output.partition("tables of about ")[2].split()[0].replace(",", ""))
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("part-*")) / 1e6
    assert 0.5 < estimated / written < 2


@pytest.mark.slow
def test_statistics_are_computed_now_or_later(perturb, tmp_path):
    status, output, error = perturb("--genes=all", "--statistics=aggregate")
    assert status == 0, error
    folder = tmp_path / "out" / "statistics"
    assert (folder / "aggregate.html").is_file() and "aggregate: " in output
    status, output, error = perturb("--genes=all", "--statistics=aggregate,mixture_model")
    assert status == 0, error
    assert "nothing to do" in output
    table = pd.read_parquet(folder / "mixture_model.parquet")
    assert set(table["Impact_component"]) <= {0, 1} and len(table) > 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--statistics=agregate"], 'no statistic "agregate" (did you mean "aggregate"?)'),
        (["--statistics=vs_null"], "name their perturbation in --null"),
    ],
)
def test_statistics_are_checked_before_work(perturb, tmp_path, arguments, words):
    status, _, error = perturb(*arguments)
    assert status == 1
    assert_one_line(error)
    assert words in error and not (tmp_path / "out").exists()


def test_gene_shifts_are_kept_whole_in_part_or_as_means(perturb, model, toy_store, tmp_path):
    for kind, arguments in (("full", {}), ("top", {"top": 4}), ("means", {})):
        out = tmp_path / kind
        top = [f"--top={arguments['top']}"] if arguments else []
        status, _, error = perturb(f"--output={out}", f"--gene_shifts={kind}", *top)
        assert status == 0, error
        expected = perturb_cells(
            model, toy_store, genes=GENES, max_cells=5, gene_shifts=kind, **arguments
        )
        if kind == "means":
            found = pd.read_parquet(out / "gene_shift_means.parquet")
            assert not (out / "means").exists()
            assert found["perturbed"].astype(str).is_monotonic_increasing
            for name in ("perturbed", "affected"):
                assert found[name].astype(str).tolist() == expected[name].astype(str).tolist()
            np.testing.assert_allclose(found["mean"], expected["mean"], atol=1e-6)
            np.testing.assert_allclose(found["sd"], expected["sd"], atol=1e-5)
            assert found["n"].tolist() == expected["n"].tolist()
        else:
            same(read(out, "gene_shifts"), expected)


def test_states_are_computed_once_or_given(perturb, model, toy_store, tmp_path):
    states = ["--states=kind", "--start=a", "--goal=b"]
    status, _, error = perturb(*states)
    assert status == 0, error
    found = read(tmp_path / "out")
    given = {"column": "kind", "goal": "b", "start": "a"}
    expected = perturb_cells(model, toy_store, genes=GENES, max_cells=5, states=given)
    same(found, expected)
    assert set(found["state"]) == {"", "a", "b"}
    cells = pd.read_parquet(tmp_path / "out" / "cells.parquet")
    assert set(found["cell"]) <= set(cells["cell"]) and set(cells["obs:kind"]) == {"a"}
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["counts"]["states"] == {
        "column": "kind",
        "start": "a",
        "goal": "b",
        "alternatives": [],
    }
    given = tmp_path / "given"
    baselines = pd.read_parquet(tmp_path / "out" / "baselines.parquet")
    pd.testing.assert_frame_equal(baselines, compare_states(toy_store, "kind", "b", "a")[0])
    kinds = toy_store.obs["kind"].value_counts()
    assert provenance["counts"]["cells_compared"] == {"b": kinds["b"], "a": kinds["a"]}
    kept = tmp_path / "out" / "states.parquet"
    assert perturb(*states, f"--state_embeddings={kept}", f"--output={given}")[0] == 0
    same(read(given), found)
    status, _, error = perturb(
        *states, "--hidden_layer=0", f"--state_embeddings={kept}", "--output=x"
    )
    assert status == 1 and "no layer 0" in error


def test_genes_beyond_the_context_slide_in_from_counts(perturb, model, tmp_path):
    counts = tmp_path / "counts.h5ad"
    adata = toy_cells(cells=6)
    adata.write_h5ad(counts)
    arguments = [f"--cells={counts}", "--truncation=refill", "--gene_shifts=full"]
    assert perturb(*arguments)[0] == 0
    expected = perturb_cells(
        model, adata, genes=GENES, max_cells=5, truncation="refill", gene_shifts="full"
    )
    same(read(tmp_path / "out", "gene_shifts"), expected)


@pytest.mark.slow
def test_the_old_name_of_a_hidden_layer_is_its_alias(perturb, tmp_path):
    assert perturb("--hidden_layer=0")[0] == 0
    other = tmp_path / "other"
    assert perturb("--layer=0", f"--output={other}")[0] == 0
    assert_same_folders(tmp_path / "out", other)
    kept = json.loads((other / "provenance.json").read_text())
    assert kept["counts"]["hidden_layer"] == kept["configuration"]["hidden_layer"] == 0
    assert "layer" not in kept["configuration"]


def test_counts_come_from_a_layer(model):
    adata = toy_cells(cells=6)
    expected = perturb_cells(model, adata, genes=GENES)
    adata.layers["counts"], adata.X = adata.X.copy(), adata.X * 0.5
    pd.testing.assert_frame_equal(
        perturb_cells(model, adata, genes=GENES, counts_layer="counts"), expected
    )
    with pytest.raises(InputError, match=r'"count".*did you mean "counts"'):
        perturb_cells(model, adata, genes=GENES, counts_layer="count")


@pytest.mark.slow
def test_combinations_come_from_a_file(perturb, tmp_path):
    sets = tmp_path / "sets.txt"
    sets.write_text(f"{GENES[0]} {GENES[1]}\n# a comment\n{GENES[2]},{GENES[0]} # another\n")
    assert perturb(f"--combinations={sets}", "--genes=all", "--edit=overexpress")[0] == 0
    found = read(tmp_path / "out")
    alone = {GENES[0], GENES[1], GENES[2]}
    together = {f"{GENES[0]}+{GENES[1]}", f"{GENES[2]}+{GENES[0]}"}
    assert set(found["perturbed"]) == alone | together
    # Every cell, whether it expresses them or not.
    assert len(found) == 5 * 5 * 2


def test_genes_come_from_a_file(perturb, tmp_path):
    listed = tmp_path / "genes.txt"
    listed.write_text("\n".join(GENES))
    assert perturb(f"--genes={listed}")[0] == 0
    other = tmp_path / "other"
    assert perturb(f"--output={other}")[0] == 0
    assert_same_folders(tmp_path / "out", other)


def test_a_list_is_perturbed_as_far_as_it_is_there(perturb, toy_store, tmp_path):
    cells = select_cells(toy_store, max_cells=5)
    expressed = {f"ENSG{token - 2:011d}" for row in cells.read(range(5)) for token in row}
    absent = next(gene for gene in toy_store.vocabulary.gene_ids if gene not in expressed)
    rows = ["Gene symbol", *GENES, "TP53", str(absent), GENES[0], "MYC"]
    (tmp_path / "list.txt").write_text("\n".join(rows))
    status, output, error = perturb(f"--genes={tmp_path}/list.txt")
    assert status == 0, error
    assert set(read(tmp_path / "out")["perturbed"]) == set(GENES) & expressed
    left_out = pd.read_csv(tmp_path / "out" / "genes_left_out.tsv", sep="\t")
    reasons = left_out.groupby("reason")["gene"].agg(list).to_dict()
    unexpressed = [gene for gene in [*GENES, absent] if gene not in expressed]
    assert reasons == {
        "not in the vocabulary": ["TP53", "MYC"],
        "expressed in none of the cells": unexpressed,
    }
    assert "listed genes left out, not in the vocabulary: 2 (TP53, MYC)" in output
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert len(provenance["counts"]["genes_left_out"]) == 2 + len(unexpressed)
    assert "genes_left_out.tsv" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_states_may_hold_commas(tmp_path, perturb):
    adata = toy_cells(40)
    names = ["a, b", "c, d", "c", "d"]
    adata.obs["state"] = [names[i % 4] for i in range(40)]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    given = [f"--cells={tmp_path}/cells.h5ad", f"--genes={GENES[0]}", "--max_cells=2"]
    states = ["--states=state", "--start=a, b", "--goal=c", "--alternatives=c, d,d"]
    status, _, error = perturb(*given, *states)
    assert status == 0, error
    assert set(read(tmp_path / "out")["state"]) >= {"a, b", "c", "c, d", "d"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--genes=ENSG00000000000,TP53", "--combine=together"], '"TP53" is not in the vocab'),
        (["--genes=TP53,MYC"], '"TP53" is not in the vocabulary of 150 genes (nor are 1 others)'),
        (["--genes=nowhere.txt"], "nowhere.txt does not exist"),
        (["--genes=ENSG0000000000l"], 'did you mean "ENSG00000000'),
        (["--genes=,"], "names no gene"),
        (["--edit=delte"], 'did you mean "delete"'),
        (["--edit=inhibit"], "needs either ranks"),
        (["--quantile=0.5"], "leave ranks and quantile out"),
        (["--combinations=nowhere", "--genes=all"], "nowhere does not exist"),
        (["--anchor=ENSG00000000001", "--combine=pairs"], "leave one of them out"),
        (["--mode=cls"], "needs a <cls> token"),
        (["--hidden_layer=-3"], "--hidden_layer -3 is not in this model of 2 layers"),
        (["--goal=b"], "but not its obs column"),
        (["--states=kind"], "states need an obs column and a goal"),
        (["--states=kind", "--goal=c"], 'has no value "c"'),
        (["--states=kin", "--goal=b"], 'did you mean "kind"'),
        (["--states=kind", "--goal=b", "--state_embeddings=nowhere"], "nowhere does not exist"),
        (["--state_embeddings=nowhere"], "but no states"),
        (["--classes"], "need a checkpoint with a cell classifier"),
        (["--gene_shifts=some"], 'no gene_shifts "some"'),
        (["--truncation=refil"], 'did you mean "refill"'),
        (["--shard=2/2"], "must be i/n"),
        (["--shard=0/2", "--finish"], "give one of them"),
        (["--shard=0/99"], "--shard is 0/99, but there are only 16 edits"),
        (["--filter=kind:c"], 'has no value "c"'),
        (["--cells=nowhere"], "nowhere"),
        (["--vocabulary=nowhere"], "nowhere"),
        (["--precision=float31"], 'did you mean "float32"'),
        (["--finish"], "parts are missing (0, 1, 2, 3, 4): run the same command with neither"),
    ],
)
def test_bad_input_ends_with_one_line_and_no_output(perturb, tmp_path, arguments, words):
    status, _, error = perturb(*arguments)
    assert status == 1
    assert_one_line(error)
    assert words in error
    assert not (tmp_path / "out").exists()
    if "--finish" not in arguments:
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_refused_before_work_starts(perturb, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    status, _, error = perturb()
    assert status == 1
    assert_one_line(error)
    assert "the tables will take some" in error
