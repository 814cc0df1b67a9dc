"""The embed command: what it writes, and what it refuses."""

import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from geneformer_jax.common.provenance import without_times
from geneformer_jax.embedding import parts, quality
from geneformer_jax.embedding.api import embed_cells
from geneformer_jax.embedding.embedder import KEY, Embedder, keys_of
from geneformer_jax.embedding.output import read_output
from geneformer_jax.embedding.report import EmbeddingReport
from geneformer_jax.embedding.run import EmbeddingRun
from geneformer_jax.embedding.states import StateEmbeddings
from geneformer_jax.interop.huggingface import export_model
from geneformer_jax.interop.store_exchange import store_to_dataset
from geneformer_jax.model import pretrained
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.pages import assert_files_are_linked, read_page
from tests.helpers.toy import make_store, toy_cells, toy_model, toy_vocabulary


@pytest.fixture(scope="module")
def model() -> pretrained.PretrainedModel:
    return toy_model()


@pytest.fixture
def embed(model, toy_store, tmp_path, monkeypatch, capsys):
    """Runs the command with a toy model; returns (exit status, output, error)."""
    monkeypatch.setattr(pretrained, "load_model", lambda path, quantize=None: model)

    def run(*arguments: str) -> tuple[int, str, str]:
        defaults = {
            "--checkpoint": "toy",
            "--cells": str(toy_store.folder),
            "--output": str(tmp_path / "out.h5ad"),
        }
        given = [argument.partition("=")[0] for argument in arguments]
        defaults = [f"{name}={value}" for name, value in defaults.items() if name not in given]
        return run_command("embed", [*defaults, *arguments], monkeypatch, capsys)

    return run


def test_embeddings_accuracies_and_provenance_are_written(embed, model, toy_store, tmp_path):
    counts = tmp_path / "counts.h5ad"
    toy_cells().write_h5ad(counts)
    status, output, error = embed("--color=kind", f"--counts={counts}")
    assert status == 0, error
    written = ad.read_h5ad(tmp_path / "out.h5ad")
    assert list(written.obs_names) == list(toy_store.cell_ids)
    np.testing.assert_array_equal(written.obsm[KEY], embed_cells(model, toy_store).obsm[KEY])
    provenance = json.loads((tmp_path / "out.provenance.json").read_text())
    assert json.loads(written.uns["geneformer"]["provenance"]) == without_times(provenance)
    assert provenance["written_at"] and provenance["counts"]["throughput"]["seconds"]
    accuracies = provenance["counts"]["label_accuracy"]["kind"]
    # Two cell types that express different genes: the counts tell them apart.
    assert accuracies["PCA(50) of log counts"]["accuracy"] > 0.9
    for name, result in accuracies.items():
        assert f"{name:<26} {result['accuracy']:.3f}" in output
    assert sorted(path.name for path in tmp_path.glob("out*")) == [
        "out.h5ad",
        "out.provenance.json",
        "out.report.html",
    ]


@pytest.mark.parametrize("name", ["out.report.html", "out.provenance.json"])
def test_no_file_of_someone_else_is_replaced(embed, tmp_path, name):
    (tmp_path / name).write_text("mine")
    status, _, error = embed()
    assert status == 1
    assert_one_line(error)
    assert f"{tmp_path / name} is no " in error
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


@pytest.mark.parametrize("is_exported", [False, True])
def test_weights_that_were_trained_further_are_told(
    is_exported, toy_store, tmp_path, monkeypatch, capsys
):
    def write(seed: int) -> None:
        for name in ("run", "model"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        pretrained.save_model(toy_model(seed), tmp_path / "run", {})
        if is_exported:
            export_model(tmp_path / "run", tmp_path / "model")

    model = tmp_path / ("model" if is_exported else "run")
    given = [f"--checkpoint={model}", f"--cells={toy_store.folder}"]
    given.append(f"--output={tmp_path / 'out.npy'}")
    write(0)
    for _ in range(2):
        status, output, error = run_command("embed", given, monkeypatch, capsys)
        assert status == 0, error
    assert "nothing to do" in output
    write(1)
    status, _, error = run_command("embed", given, monkeypatch, capsys)
    assert status == 1
    assert_one_line(error)
    assert f"out.npy was made of {model} before it was changed; remove it" in error


def test_counts_that_change_meanwhile_or_afterwards_are_told(embed, tmp_path, monkeypatch):
    counts, other = tmp_path / "counts.h5ad", toy_cells(40)[::-1].copy()
    given = (f"--cells={counts}", "--with_counts")
    toy_cells(40).write_h5ad(counts)
    with monkeypatch.context() as patch:
        finish = EmbeddingRun.finish
        patch.setattr(EmbeddingRun, "finish", lambda run: (other.write_h5ad(counts), finish(run)))
        status, _, error = embed(*given)
    assert status == 1
    assert f"{counts} has changed since it was looked at" in error
    assert not (tmp_path / "out.h5ad").exists()
    shutil.rmtree(tmp_path / "out.h5ad.parts")
    assert embed(*given)[0] == 0
    written = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(written.X.toarray(), other.X.toarray())
    assert embed(*given)[0] == 0
    toy_cells(40, seed=1).write_h5ad(counts)
    status, _, error = embed(*given)
    assert status == 1
    assert_one_line(error)
    assert f"out.h5ad was made of {counts} before it was changed; remove it" in error
    counts.unlink()
    assert embed(*given)[0] == 0


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """Names of the passes that were made."""
    made = []
    for name in ("rows", "genes"):
        work = getattr(Embedder, name)

        def counted(*given, name=name, work=work):
            made.append(name)
            return work(*given)

        monkeypatch.setattr(Embedder, name, counted)
    return made


def test_the_same_command_may_be_given_again_and_another_may_not(embed, computed, tmp_path):
    assert embed()[0] == 0
    before = ad.read_h5ad(tmp_path / "out.h5ad").obsm[KEY]
    computed.clear()
    status, output, _ = embed()
    assert (status, computed) == (0, []) and "nothing to do" in output
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "out.h5ad").obsm[KEY], before)
    status, _, error = embed("--layer=0")
    assert status == 1
    assert_one_line(error)
    assert "was not written by this command" in error
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "out.h5ad").obsm[KEY], before)


@pytest.mark.parametrize("suffix", [".h5ad", ".PARQUET", ".npy"])
def test_another_report_takes_the_embeddings_that_are_there(embed, computed, tmp_path, suffix):
    given = (f"--output={tmp_path}/out{suffix}", "--max_cells=40", "--hidden_layer=-1,0")
    assert embed(*given)[0] == 0
    before = read_output(tmp_path / f"out{suffix}", keys_of((-1, 0)))
    speed = json.loads((tmp_path / "out.provenance.json").read_text())["counts"]["throughput"]
    computed.clear()
    status, output, error = embed(*given, "--states=kind")
    assert status == 0, error
    assert computed == [] and "only the report is new" in output
    after = read_output(tmp_path / f"out{suffix}", keys_of((-1, 0)))
    np.testing.assert_array_equal(after[0], before[0])
    pd.testing.assert_frame_equal(after[1], before[1])
    provenance = json.loads((tmp_path / "out.provenance.json").read_text())
    assert provenance["counts"]["throughput"] == speed
    assert provenance["configuration"]["states"] == "kind"
    assert (tmp_path / "out.states.parquet").is_file()
    # A report that was lost is made again; other embeddings are not written over.
    (tmp_path / "out.report.html").unlink()
    assert embed(*given, "--states=kind")[0] == 0 and computed == []
    assert (tmp_path / "out.report.html").is_file()
    status, _, error = embed(given[0], "--max_cells=41", given[2])
    assert status == 1 and "was not written by this command" in error


@pytest.mark.parametrize("suffix", [".H5AD", ".parquet", ".NPY"])
def test_all_cells_keep_their_rows_on_request(embed, tmp_path, suffix):
    adata = toy_cells(20)
    counts = adata.X.toarray()
    counts[[3, 7]] = 0
    adata.X = sparse.csr_matrix(counts)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    given = (f"--cells={tmp_path}/cells.h5ad", "--all_cells", "--filter=kind:a")
    given = (*given, f"--output={tmp_path}/out{suffix}")
    for more in ((), ("--states=kind",)):
        status, output, error = embed(*given, *more)
        assert status == 0, error
        for text in ("no gene of the vocabulary", "filtered out"):
            assert f"  left out, {text}: " in output
        assert ["no gene of the vocabulary", "2"] in read_page(tmp_path / "out.report.html").rows
        rows, table = read_output(tmp_path / f"out{suffix}", keys_of((-1,)))
        assert table.index.tolist() == adata.obs_names.tolist()
        kept = (adata.obs["kind"] == "a").to_numpy() & ~np.isin(np.arange(20), [3, 7])
        np.testing.assert_array_equal(np.isnan(rows[:, 0]).all(axis=1), ~kept)
        assert np.isfinite(rows[kept]).all()


@pytest.mark.parametrize(("suffix", "name"), [(".h5ad", "_index"), (".parquet", KEY)])
def test_names_that_a_format_cannot_hold_are_refused_before_work(
    embed, computed, tmp_path, capsys, suffix, name
):
    adata = toy_cells(6)
    adata.obs["odd"] = "x"
    store = make_store(tmp_path / "odd", adata, toy_vocabulary(), obs=("odd",))
    obs = store.folder / "obs.parquet"
    pq.write_table(pq.read_table(obs).rename_columns({"odd": name}), obs)
    # As in stores of earlier versions, which hold any table.
    (store.folder / "checksums.json").unlink()
    capsys.readouterr()  # the progress of tokenising
    status, _, error = embed(f"--cells={store.folder}", f"--output={tmp_path}/out{suffix}")
    assert status == 1 and computed == []
    assert_one_line(error)
    assert f'cannot hold the obs column "{name}"' in error
    other = tmp_path / ("out.parquet" if suffix == ".h5ad" else "out.h5ad")
    assert embed(f"--cells={store.folder}", f"--output={other}")[0] == 0
    assert read_output(other, keys_of((-1,)))[1][name].tolist() == ["x"] * 6


def test_a_tokenised_dataset_is_embedded_as_its_store(embed, toy_store, tmp_path):
    store_to_dataset(toy_store.folder, tmp_path / "cells.parquet")
    assert embed("--max_cells=9", f"--output={tmp_path}/store.h5ad")[0] == 0
    status, _, error = embed(
        "--max_cells=9", f"--cells={tmp_path}/cells.parquet", f"--output={tmp_path}/out.h5ad"
    )
    assert status == 0, error
    found, expected = (read_output(tmp_path / f"{n}.h5ad", [KEY]) for n in ("out", "store"))
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1]["kind"].tolist() == expected[1]["kind"].tolist()


def test_a_report_on_embeddings_of_other_weights_is_refused(embed, monkeypatch, tmp_path):
    assert embed("--max_cells=9")[0] == 0
    monkeypatch.setattr(pretrained, "load_model", lambda path, quantize=None: toy_model(seed=1))
    status, _, error = embed("--max_cells=9", "--states=kind")
    assert status == 1
    assert_one_line(error)
    assert "other cells or weights" in error


def test_an_interrupted_run_goes_on_with_another_report(embed, computed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingReport, "make", _die)
        assert embed("--max_cells=9", "--states=kind")[0] == 130
    computed.clear()
    assert embed("--max_cells=9")[0] == 0
    assert computed == [] and not (tmp_path / "out.h5ad.parts").exists()


def _die(*_):
    raise KeyboardInterrupt


def test_genes_are_written_under_their_ids(embed, tmp_path):
    assert embed("--mode=gene")[0] == 0
    written = ad.read_h5ad(tmp_path / "out.h5ad")
    assert written.obs_names[0].startswith("ENSG")
    assert (written.obs["n_cells"] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output=out.txt"], "must end in .h5ad, .parquet, .npy"),
        (["--filter=kind"], "must have the form column:value|value"),
        (["--filter=kin:a"], 'no obs column "kin" (did you mean "kind"?)'),
        (["--filter=kind:c"], 'has no value "c"'),
        (["--hidden_layer=low"], "must list numbers"),
        (["--hidden_layer=0,0"], "name each layer once"),
        (["--max_cells=0"], "max_cells"),
        (["--states=kin"], 'no obs column "kin" (did you mean "kind"?)'),
        (["--states=kind", "--quantiles=2"], "quantile 2.0 is not between 0 and 1"),
        (["--quality=kin"], 'no obs column "kin" (did you mean "kind"?)'),
        (["--batch_key=kind"], "--batch_key is for --quality"),
        (["--with_counts", "--output=out.parquet"], "--with_counts is for an .h5ad"),
        (["--with_counts"], "--with_counts needs the raw counts"),
        (["--with_counts", "--mode=gene"], "--with_counts are for cells"),
        (["--vitessce=localhost:8000"], "--vitessce localhost:8000 is no URL"),
        (["--genes=ENSG00000000001"], "give --mode gene and --figures too"),
        (["--mode=occurrence", "--figures"], "draw genes with --mode gene"),
        (["--color=kin"], 'no obs column "kin" (did you mean "kind"?)'),
        (["--color=kind", "--filter=kind:a"], "kind has 1 labels with at least 5 cells"),
        (["--layer=-3"], "--hidden_layer -3 is not in this model of 2 layers"),
        (["--mode=cls"], "needs a <cls> token"),
        (["--mode=gene", "--color=kind"], "--mode gene embeds genes"),
        (["--cells=nowhere"], "nowhere"),
        (["--precision=float31"], 'did you mean "float32"'),
        (["--attention=xlaa"], "xla"),
        (["--vocabulary=nowhere"], "nowhere"),
        (["--counts=nowhere.h5ad"], "nowhere.h5ad does not exist"),
    ],
)
def test_bad_input_ends_with_one_line_and_no_file(embed, tmp_path, arguments, words):
    status, _, error = embed(*arguments)
    assert status == 1
    assert_one_line(error)
    assert words in error
    assert list(tmp_path.glob("out*")) == []


def test_a_file_of_someone_else_is_kept(embed, tmp_path):
    (tmp_path / "out.h5ad").write_text("precious")
    status, _, error = embed()
    assert status == 1
    assert_one_line(error)
    assert (tmp_path / "out.h5ad").read_text() == "precious"
    toy_cells(cells=5).write_h5ad(tmp_path / "out.h5ad")
    assert embed()[0] == 1
    assert ad.read_h5ad(tmp_path / "out.h5ad").n_obs == 5


def test_another_format_of_the_same_name_does_not_take_its_provenance(embed, tmp_path):
    assert embed("--max_cells=5")[0] == 0
    before = (tmp_path / "out.provenance.json").read_text()
    status, _, error = embed("--max_cells=5", f"--output={tmp_path / 'out.parquet'}")
    assert status == 1 and "choose another name" in error
    assert_one_line(error)
    assert (tmp_path / "out.provenance.json").read_text() == before
    # Moved away, it has no claim to them any more.
    (tmp_path / "out.h5ad").rename(tmp_path / "moved.h5ad")
    assert embed("--max_cells=5", f"--output={tmp_path / 'out.parquet'}")[0] == 0


def test_filtered_states_go_to_a_table_for_perturb(embed, model, toy_store, tmp_path):
    arguments = ("--filter=kind:a|b", "--max_cells=60", "--states=kind", "--quantiles=0.9")
    status, output, error = embed(f"--output={tmp_path / 'out.parquet'}", *arguments)
    assert status == 0, error
    table = pd.read_parquet(tmp_path / "out.parquet")
    # The cells that the original's max_ncells=60 keeps.
    kept = np.sort(np.random.default_rng(42).permutation(240)[:60])
    assert list(table.index) == list(toy_store.cell_ids[kept])
    expected = embed_cells(model, toy_store).obsm[KEY][kept]
    np.testing.assert_allclose(np.stack(table[KEY]), expected, atol=2e-6)
    states = StateEmbeddings.load(tmp_path / "out.states.parquet")
    is_a = (toy_store.obs["kind"].iloc[kept] == "a").to_numpy()
    np.testing.assert_allclose(states.vectors("mean")["a"], expected[is_a].mean(axis=0), atol=2e-6)
    assert states.facts["vocabulary_hash"] == model.vocabulary.hash
    assert set(states.table["statistic"]) >= {"median", "lower_median", "quantile_0.9"}
    provenance = json.loads((tmp_path / "out.provenance.json").read_text())
    assert provenance["counts"]["left_out"] == {"not drawn": 180}
    assert "cells/s" in output and "padding" in output


def test_a_killed_command_goes_on_and_leaves_nothing_behind(embed, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "shareable_size", lambda *_: 104)
    assert embed(f"--output={tmp_path / 'whole.npy'}")[0] == 0
    rows, calls = Embedder.rows, []

    def dying(self, start, stop, progress):
        calls.append(start)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rows(self, start, stop, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "rows", dying)
        status, _, error = embed(f"--output={tmp_path / 'out.npy'}")
    assert status == 130
    assert_one_line(error.replace("embed: 104 of 240 cells\n", ""))
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.npy.parts"]
    monkeypatch.setattr(Embedder, "rows", lambda *given: (calls.append(given[1]), rows(*given))[1])
    assert embed(f"--output={tmp_path / 'out.npy'}")[0] == 0
    assert calls == [0, 104, 104, 208]
    whole, resumed = (np.load(tmp_path / f"{name}.npy") for name in ("whole", "out"))
    np.testing.assert_array_equal(resumed, whole)
    assert not (tmp_path / "out.npy.parts").exists()


def test_shares_join_to_what_one_process_writes(embed, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "shareable_size", lambda *_: 104)
    assert embed(f"--output={tmp_path / 'whole.h5ad'}")[0] == 0
    status, output, _ = embed("--shard=1/2")
    assert status == 0 and "shard 1/2 is done; when all are, run the same command with" in output
    status, _, error = embed("--finish")
    assert status == 1
    assert_one_line(error)
    assert "1 of 3 parts are missing (0): run the same command with --shard=0/2" in error
    status, output, _ = embed("--shard=3/9")
    assert status == 0 and "shard 3/9 has nothing to do (parts in all: 3)" in output
    assert embed("--shard=0/2")[0] == 0 and not (tmp_path / "out.h5ad").exists()
    assert embed("--finish")[0] == 0
    whole, shared = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("whole", "out"))
    np.testing.assert_array_equal(shared.obsm[KEY], whole.obsm[KEY])
    kept = [json.loads(each.uns["geneformer"]["provenance"]) for each in (whole, shared)]
    for each in kept:
        del each["configuration"]["output"]
    assert kept[0]["configuration"] == kept[1]["configuration"]
    # The output is that of the command without its shares.
    assert "nothing to do" in embed()[1]


def test_quality_is_measured_beside_baselines(embed, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "has_scib", lambda: False)
    counts = tmp_path / "counts.h5ad"
    toy_cells().write_h5ad(counts)
    status, output, error = embed("--quality=kind", f"--counts={counts}")
    assert status == 0, error
    provenance = json.loads((tmp_path / "out.provenance.json").read_text())
    measured = provenance["counts"]["quality"]["kind"]
    assert set(measured) == {"model", "random weights", "PCA(50) of log counts"}
    # The weights of this model are random too.
    accuracy = quality.ACCURACY
    assert abs(measured["model"][accuracy] - measured["random weights"][accuracy]) < 0.1
    assert measured["PCA(50) of log counts"][accuracy] > 0.9
    assert "the model" in output
    assert (tmp_path / "out_quality_kind.png").stat().st_size > 5_000
    page = read_page(tmp_path / "out.report.html")
    shown = {row[0]: row for row in page.rows[1:]}
    assert set(shown) == set(measured)
    files = ["out.h5ad", "out.provenance.json", "out_quality_kind.pdf", "out_quality_kind.png"]
    assert_files_are_linked(page, tmp_path, files)
    assert len(page.images) == 1


@pytest.mark.slow
def test_figures_are_drawn(embed, tmp_path):
    status, _, error = embed("--color=kind", "--figures")
    assert status == 0, error
    for suffix in ("png", "pdf"):
        for name in ("umap", "heatmap"):
            assert (tmp_path / f"out_{name}_kind.{suffix}").stat().st_size > 5_000
    assert ad.read_h5ad(tmp_path / "out.h5ad").obsm["X_umap"].shape == (240, 2)


def test_similarity_of_genes_is_drawn_of_those_that_are_there(embed, computed, tmp_path):
    listed = ["Gene ID", "ENSG00000000003", "TP53", "ENSG00000000140", "ENSG00000000004"]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    status, output, error = embed("--mode=gene", "--figures", f"--genes={tmp_path}/list.txt")
    assert status == 0, error
    assert (tmp_path / "out_gene_similarity.png").stat().st_size > 5_000
    told = "listed genes left out, not in the vocabulary: 1 (TP53)"
    assert told in output and told in (tmp_path / "out.report.html").read_text()
    provenance = json.loads((tmp_path / "out.provenance.json").read_text())
    (left_out,) = provenance["counts"]["genes_left_out"]
    assert left_out == {"gene": "TP53", "symbol": "", "reason": "not in the vocabulary"}
    computed.clear()
    other = f"--output={tmp_path}/other.h5ad"
    for genes, words in (
        ("TP53,MYC", '"TP53" is not in the vocabulary'),
        (f"{listed[1]},TP53", "2 to 120 genes, and 1 are named, without TP53"),
    ):
        status, _, error = embed("--mode=gene", "--figures", f"--genes={genes}", other)
        assert status == 1
        assert_one_line(error)
        assert words in error and computed == []


def test_counts_come_with_the_embeddings_on_request(embed, toy_store, tmp_path):
    counts = toy_cells()
    counts.var["gene_symbol"] = [f"G{i}" for i in range(counts.n_vars)]
    # In another order than the store's, and with a cell more.
    another = counts[:1].copy()
    another.obs_names = ["another"]
    more = ad.concat([another, counts[::-1]], merge="same")
    more.write_h5ad(tmp_path / "counts.h5ad")
    status, _, error = embed("--with_counts", f"--counts={tmp_path / 'counts.h5ad'}")
    assert status == 0, error
    written = ad.read_h5ad(tmp_path / "out.h5ad")
    assert isinstance(written.X, sparse.csc_matrix)
    np.testing.assert_array_equal(written.X.toarray(), counts[written.obs_names].X.toarray())
    assert list(written.var_names) == list(counts.var_names)
    assert list(written.var["gene_symbol"]) == list(counts.var["gene_symbol"])
    assert KEY in written.obsm


@pytest.mark.slow
def test_a_folder_for_vitessce_holds_what_its_config_names(embed, toy_store, tmp_path):
    toy_cells().write_h5ad(tmp_path / "counts.h5ad")
    given = (f"--counts={tmp_path / 'counts.h5ad'}", "--color=kind")
    status, output, error = embed(*given, "--vitessce=http://host/cells/")
    assert status == 0, error
    assert "https://vitessce.io/#?url=http://host/cells/config.json" in output
    folder = tmp_path / "out.vitessce"
    config = json.loads((folder / "config.json").read_text())
    (file,) = config["datasets"][0]["files"]
    assert file["url"] == "http://host/cells/cells.zarr"
    cells, embedded = ad.read_zarr(folder / "cells.zarr"), ad.read_h5ad(tmp_path / "out.h5ad")
    options = file["options"]
    (shown,), (labels,) = options["obsEmbedding"], options["obsSets"]
    assert shown["path"] == "obsm/X_umap"
    np.testing.assert_array_equal(cells.obsm["X_umap"], embedded.obsm["X_umap"])
    assert labels == {"name": "kind", "path": "obs/kind"}
    assert list(cells.obs["kind"]) == list(embedded.obs["kind"])
    assert options["obsFeatureMatrix"] == {"path": "X"}
    np.testing.assert_array_equal(cells.X.toarray(), toy_cells()[cells.obs_names].X.toarray())
    # Made anew with another URL; what is of someone else is kept.
    assert embed(*given, "--vitessce=http://other")[0] == 0
    assert "http://other/cells.zarr" in (folder / "config.json").read_text()
    (folder / "config.json").unlink()
    status, _, error = embed(*given, "--vitessce=http://third")
    assert status == 1
    assert_one_line(error)
    assert (folder / "cells.zarr").is_dir()
