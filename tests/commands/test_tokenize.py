"""The commands build_vocabulary and tokenize, many files and many processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pytest
import tensorflow_datasets as tfds

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.store.builder import StoreBuild
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.tokenization.flags import parse_exclusions
from geneformer_jax.cells.tokenization.tokenizer import NO_GENE, TokenizerOptions
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.command_line import parse_shard
from geneformer_jax.common.errors import InputError
from tests.helpers.commands import run_command
from tests.helpers.small_stores import build, cells, same_stores, slow_tokens, write

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder of the test; returns its output, or its one error line."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments, fails=False):
        status, output, error = run_command(name, list(arguments), monkeypatch, capsys)
        assert status == (1 if fails else 0), error
        if not fails:
            return output
        *progress, last = error.splitlines()
        assert last.startswith("error: ")
        assert all(" of " in line for line in progress), error
        return last

    return run


# The commands themselves


def test_from_counts_to_a_store_that_tfds_reads(files, tmp_path, command):
    counts = str(files[0].parent)
    command("build_vocabulary", f"--counts={counts}", "--output=vocabulary")
    arguments = (f"--counts={counts}", "--vocabulary=vocabulary", "--output=store")
    first = command("tokenize", *arguments, "--obs=cell_type,filter_pass")
    assert "left out, no gene of the vocabulary: 3" in first
    assert "84 of 87 cells" in first
    store = CellStore.open(tmp_path / "store")
    expected = {}
    for path in files:
        adata = anndata.read_h5ad(path)
        expected |= dict(zip(adata.obs_names, slow_tokens(adata, store.vocabulary), strict=True))
    source = tfds.builder_from_directory(tmp_path / "store").as_data_source("train")
    assert len(source) == len(store) == sum(map(bool, expected.values())) == 84
    for example, tokens in zip(source, store.read(range(84)), strict=True):
        wanted = expected[example["cell_id"].decode()]
        assert example["tokens"].tolist() == tokens.tolist() == wanted
    kept = [name for name, tokens in expected.items() if tokens]
    assert store.cell_ids.tolist() == kept
    provenance = json.loads((store.folder / "provenance.json").read_text())
    assert provenance["counts"]["dropped"] == {NO_GENE: 3}
    sources = provenance["counts"]["sources"]
    assert [source["matched_gene_ids"] for source in sources] == [83, 83, 83]
    found = [anndata.read_h5ad(path).X for path in files]
    genes = np.concatenate([np.asarray((counts > 0).sum(1)).ravel() for counts in found])
    assert store.n_genes.tolist() == genes[genes > 0].tolist()
    assert "84 cells are as written" in command("tokenize", "--output=store", "--verify")
    reported = (*arguments, "--obs=cell_type,filter_pass", "--report=report")
    assert "is complete" in command("tokenize", *reported)
    assert "Cells by cell_type" in (tmp_path / "report" / "report.html").read_text()
    assert "is complete" in command("tokenize", *reported)
    other = (*arguments, "--obs=cell_type", "--report=report")
    assert "nothing is overwritten" in command("tokenize", *other, fails=True)


def test_a_report_with_the_first_run(files, tmp_path, command, vocabulary, monkeypatch):
    """Asked for when the store is complete; its content is tested with the report."""
    vocabulary.save(tmp_path / "vocabulary")
    asked = []

    def report(store, output, columns):
        asked.append((len(CellStore.open(store)), output, columns))

    monkeypatch.setattr("geneformer_jax.reporting.corpus_report.write_corpus_report", report)
    arguments = ("--counts=counts/b.h5ad", "--vocabulary=vocabulary", "--output=store")
    output = command("tokenize", *arguments, "--obs=donor", "--report=report")
    assert "report: report on the store" in output
    assert asked == [(28, "report", ["donor"])]


def test_cells_are_chosen_by_columns(files, tmp_path, command, vocabulary):
    vocabulary.save(tmp_path / "vocabulary")
    arguments = ("--counts=counts/c.h5ad", "--vocabulary=vocabulary", "--output=store")
    chosen = ("--filter_column=filter_pass", "--exclude=cell_type=B", "--exclude=donor=d2")
    adata = anndata.read_h5ad(files[2])
    keep = (adata.obs["filter_pass"] == 1) & (adata.obs["cell_type"] != "B")
    keep &= adata.obs["donor"].astype(str) != "d2"
    keep &= np.asarray(adata.X.sum(1)).ravel() > 0
    output = command("tokenize", *arguments, *chosen)
    assert f"{keep.sum()} of 38 cells" in output
    assert 0 < keep.sum() < 30
    assert CellStore.open("store").cell_ids.tolist() == adata.obs_names[keep].tolist()
    dropped = json.loads(Path("store/provenance.json").read_text())["counts"]["dropped"]
    assert sum(dropped.values()) == 38 - keep.sum()
    assert min(list(dropped.values())[:3]) > 0


def test_a_total_of_zero(files, tmp_path, command, vocabulary):
    """Goes with a cell without counts, which is left out and counted; else it is refused."""
    vocabulary.save(tmp_path / "vocabulary")
    arguments = ("--vocabulary=vocabulary", "--output=store")
    adata = anndata.read_h5ad(files[0])
    empty = int(np.flatnonzero(np.asarray(adata.X.sum(1)).ravel() == 0)[0])
    assert adata.obs["n_counts"].iloc[empty] == 0
    adata.obs.loc[adata.obs_names[empty - 1], "n_counts"] = 0
    adata.write_h5ad(tmp_path / "zero.h5ad")
    output = command("tokenize", "--counts=zero.h5ad", *arguments, fails=True)
    assert f'cell "{adata.obs_names[empty - 1]}" has n_counts 0, less than' in output
    output = command("tokenize", "--counts=counts/a.h5ad", *arguments)
    assert "left out, no gene of the vocabulary: 1" in output


def test_a_vocabulary_measured_in_shards_is_the_same(files, tmp_path, command):
    arguments = ("--counts=counts", "--quality=paper")
    whole = command("build_vocabulary", *arguments, "--output=whole")
    shared = (*arguments, "--output=shared")
    output = command("build_vocabulary", *shared, "--finish", fails=True)
    assert "holds no shard" in output
    command("build_vocabulary", *shared, "--shard=1/2")
    output = command("build_vocabulary", *shared, "--finish", fails=True)
    assert "1 of 2 shards are not measured yet; run --shard=0/2" in output
    command("build_vocabulary", "--counts=counts", "--output=shared", "--shard=0/2")
    output = command("build_vocabulary", *shared, "--finish", fails=True)
    assert "0-of-2.npz was measured on other files or with other options" in output
    assert not (tmp_path / "shared").exists()
    command("build_vocabulary", *shared, "--shard=0/2")
    joined = command("build_vocabulary", *shared, "--finish")
    assert joined.splitlines()[1:-1] == whole.splitlines()[1:-1]
    assert GeneVocabulary.load("shared").hash == GeneVocabulary.load("whole").hash
    assert not (tmp_path / "shared.shards").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("build_vocabulary", ["--counts=counts", "--output=counts"], "already holds"),
        ("build_vocabulary", ["--counts=counts", "--output=v", "--biotypes=x"], "--gene_table"),
        ("tokenize", ["--counts=counts", "--vocabulary=counts", "--output=s"], "no vocabulary"),
    ],
)
def test_bad_flags_end_in_one_line(files, tmp_path, command, name, arguments, message):
    assert message in command(name, *arguments, fails=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts"]


@pytest.mark.multiprocess
def test_a_killed_run_goes_on(tmp_path, files, vocabulary):
    """Killed when its first file is whole, then run again: the same store."""
    vocabulary.save(tmp_path / "vocabulary")
    arguments = [f"--counts={files[0].parent}", "--vocabulary=vocabulary", "--output=store"]
    program = [sys.executable, "-m", "geneformer_jax.tokenize", *arguments, "--obs=donor"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    quiet = subprocess.DEVNULL
    run = subprocess.Popen(program, cwd=tmp_path, env=environment, stdout=quiet, stderr=quiet)
    while run.poll() is None and not list(tmp_path.glob("store/sources/a-*/source.json")):
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    whole, _ = build(tmp_path / "whole", files, vocabulary, ["donor"])
    again, _ = build(tmp_path / "store", files, vocabulary, ["donor"])
    same_stores(again, whole)
    assert not list((tmp_path / "store").rglob("*.partial*"))


# Many files, many processes


def test_a_second_process_is_refused_and_harms_nothing(tmp_path, files, vocabulary):
    folder = tmp_path / "store"
    run = StoreBuild(folder, vocabulary, TokenizerOptions(max_length=2048), CountOptions(), [])
    run.survey(files)
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 2); print('', flush=True)"
    given = [sys.executable, "-c", f"{code}; input()", str(folder / "lock")]
    with subprocess.Popen(given, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        with pytest.raises(InputError, match="another process is at work"):
            run.write()
        first.kill()
    assert (folder / "store.json").is_file()


def test_shards_of_the_files_join_to_the_same_store(tmp_path, files, vocabulary):
    whole, _ = build(tmp_path / "whole", files, vocabulary, ["cell_type"])
    parts = tmp_path / "parts"
    build(parts, files, vocabulary, ["cell_type"], shard=(1, 2), finish=False)
    with pytest.raises(InputError, match=r"2 of 3 pieces are not tokenised yet.*a\.h5ad"):
        build(parts, files, vocabulary, ["cell_type"], shard=(1, 2))
    with pytest.raises(InputError, match="not complete"):
        CellStore.open(parts)
    build(parts, files, vocabulary, ["cell_type"], shard=(0, 2), finish=False)
    joined, _ = build(parts, files, vocabulary, ["cell_type"], shard=(0, 2))
    same_stores(joined, whole)


def test_a_finished_file_is_not_read_again(tmp_path, files, vocabulary):
    store = tmp_path / "store"
    build(store, files, vocabulary, shard=(0, 2), finish=False)
    written = {path: path.stat().st_mtime_ns for path in store.glob("sources/*/source.json")}
    assert len(written) == 2
    build(store, files, vocabulary)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_files_may_be_added_to_a_complete_store(tmp_path, files, vocabulary):
    first, _ = build(tmp_path / "store", files[1:], vocabulary, ["donor"])
    shards = {shard.path: shard.path.stat().st_mtime_ns for shard in first.shards}
    added, counts = build(tmp_path / "store", files[:1], vocabulary, ["donor"])
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    whole, _ = build(tmp_path / "whole", [*files[1:], files[0]], vocabulary, ["donor"])
    same_stores(added, whole)
    assert (counts["cells"], counts["cells_in_files"]) == (84, 87)


def test_a_column_may_be_missing_on_request(tmp_path, vocabulary, caplog):
    paths = []
    for n in range(3):
        adata = cells(seed=n, name=f"{n}-", n_cells=8)
        adata.obs["donor"], adata.obs["sick"], adata.obs["batch"] = n, n == 0, f"b{n}"
        if n == 1:
            del adata.obs["donor"], adata.obs["sick"], adata.obs["batch"]
        paths.append(write(adata, tmp_path / f"{n}.h5ad"))
    with pytest.raises(InputError, match=r'has no column "donor".*"donor\?" in `obs`'):
        build(tmp_path / "no", paths, vocabulary, ["donor"])
    asked = ["donor?", "sick?", "batch?", "cell_type", "nowhere?"]
    with caplog.at_level("INFO", "geneformer_jax"):
        store, counts = build(tmp_path / "store", paths, vocabulary, asked)
    kept = len(store) - sum(name.startswith(("0-", "2-")) for name in store.cell_ids)
    assert counts["cells_without_obs"]["donor"] == kept > 0
    assert counts["cells_without_obs"]["nowhere"] == len(store)
    assert "without obs column donor" in caplog.text
    assert list(store.obs) == ["donor", "sick", "batch", "cell_type", "nowhere"]
    own = store.obs[store.obs.index.str.startswith("1-")]
    assert len(own) == kept and own[["donor", "sick", "batch", "nowhere"]].isna().all(axis=None)
    other = store.obs[~store.obs.index.str.startswith("1-")]
    assert set(other["donor"]) == {0.0, 2.0} and set(other["sick"]) == {"True", "False"}
    assert set(other["batch"]) == {"b0", "b2"} and other["cell_type"].notna().all()
    # A complete store takes further files that lack it.
    adata = cells(seed=9, name="9-", n_cells=5)
    del adata.obs["donor"]
    more = write(adata, tmp_path / "9.h5ad")
    grown, _ = build(tmp_path / "store", [more], vocabulary, asked)
    assert len(grown) > len(store)


def test_a_bad_file_is_skipped_only_if_asked(tmp_path, files, vocabulary):
    text = files[0].parent / "bb.h5ad"
    text.write_text("no h5ad at all")
    fractions = cells(7, "f")
    fractions.X = fractions.X.astype(np.float32) * 0.3
    fractions.write_h5ad(files[0].parent / "bc.h5ad")
    paths = sorted(files[0].parent.iterdir())
    with pytest.raises(InputError, match=r"bb\.h5ad"):
        build(tmp_path / "store", paths, vocabulary)
    assert not (tmp_path / "store").exists()
    # Those counts are only seen while they are read; the process that joins must know of it too.
    for shard in ((0, 2), (1, 2)):
        build(tmp_path / "store", paths, vocabulary, shard=shard, skip=True, finish=False)
    run = StoreBuild(tmp_path / "store", vocabulary, TokenizerOptions(2048), CountOptions(), [])
    run.survey(paths, skip_bad_files=True)
    skipped = run.finish({}, skip_bad_files=True)["skipped_files"]
    assert sorted(Path(path).name for path in skipped) == ["bb.h5ad", "bc.h5ad"]
    store = CellStore.open(tmp_path / "store")
    whole, _ = build(tmp_path / "whole", files, vocabulary)
    same_stores(store, whole)
    provenance = json.loads((store.folder / "provenance.json").read_text())
    assert provenance["counts"]["skipped_files"] == skipped


def test_no_usable_file_at_all(tmp_path, vocabulary):
    (tmp_path / "bad.h5ad").write_text("no h5ad")
    with pytest.raises(InputError, match="none of 1 files can be used"):
        build(tmp_path / "store", [tmp_path / "bad.h5ad"], vocabulary, skip=True)


@pytest.mark.parametrize("stored", [False, True])
def test_repeated_cell_ids_are_refused_before_any_work(tmp_path, files, vocabulary, stored):
    adata = cells(8, "d")
    adata.obs_names = ["b3", *adata.obs_names[1:]]
    path = files[0].parent / "d.h5ad"
    adata.write_h5ad(path)
    if stored:
        build(tmp_path / "store", files, vocabulary)
    with pytest.raises(InputError, match=r'"b3" is in .*(d|b)\S* and in .*(b|d)\S*') as raised:
        build(tmp_path / "store", [path] if stored else [*files, path], vocabulary)
    assert "`prefix_cell_ids`" in str(raised.value)
    if stored:
        assert len(CellStore.open(tmp_path / "store")) == 84
        return
    assert not (tmp_path / "store").exists()
    store, _ = build(tmp_path / "store", [*files, path], vocabulary, prefix_cell_ids=True)
    assert {"b|b3", "d|b3"} <= set(store.cell_ids)


def test_repeated_cell_ids_within_a_file_are_refused(tmp_path, vocabulary):
    adata = cells()
    adata.obs_names = ["same", "same", *adata.obs_names[2:]]
    adata.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(InputError, match="same"):
        build(tmp_path / "store", [tmp_path / "x.h5ad"], vocabulary)


def test_columns_of_other_types_are_kept_in_a_common_one(tmp_path, files, vocabulary):
    for path, batch in zip(files, ([1], [1.5], ["x"]), strict=True):
        adata = anndata.read_h5ad(path)
        adata.obs["batch"] = batch * adata.n_obs
        adata.obs["score"] = np.arange(adata.n_obs) if path == files[0] else np.nan
        adata.write_h5ad(path)
    store, _ = build(tmp_path / "store", files, vocabulary, ["batch", "score"])
    assert sorted(store.obs["batch"].unique()) == ["1", "1.5", "x"]
    assert store.obs["score"].dtype == np.float64 and store.obs["score"].isna().sum() == 65
    with pytest.raises(InputError, match="colour"):
        build(tmp_path / "other", files, vocabulary, ["colour"])


# What flags mean


def test_shard_flags():
    assert parse_shard("") == (0, 1) and parse_shard("2/3") == (2, 3)
    for text in ("3/3", "1", "a/b", "1/0", "-1/3", "1/2/3"):
        with pytest.raises(InputError, match="must be i/n"):
            parse_shard(text)


def test_exclusions():
    assert parse_exclusions(["a=x", "b = y z", "a=w=v"]) == {"a": ["x", "w=v"], "b": ["y z"]}
    for text in ("a", "=x"):
        with pytest.raises(InputError, match="column=value"):
            parse_exclusions([text])


def test_a_dry_run_tells_what_the_store_will_hold(files, tmp_path, command):
    counts = str(files[0].parent)
    command("build_vocabulary", f"--counts={counts}", "--output=vocabulary")
    given = (f"--counts={counts}", "--vocabulary=vocabulary", "--max_length=25", "--min_genes=20")
    vocabulary = GeneVocabulary.load(tmp_path / "vocabulary")
    listed = [str(name) for name in vocabulary.gene_ids[:5]]
    before = sorted(tmp_path.rglob("*"))
    lines = command("tokenize", *given, "--dry_run", f"--genes={','.join([*listed, 'none'])}")
    document = command("tokenize", *given, "--dry_run", f"--genes={','.join(listed)}", "--json")
    assert sorted(tmp_path.rglob("*")) == before
    command("tokenize", *given, "--output=store")
    store, told = CellStore.open(tmp_path / "store"), json.loads(document)["dry_run"]
    made = json.loads((tmp_path / "store" / "provenance.json").read_text())["counts"]
    for source, expected in zip(told["sources"], made["sources"], strict=True):
        for name in ("path", "cells_in_file", "cells", "matched_gene_ids", "counts_matrix"):
            assert source[name] == expected[name]
        assert source["dropped"] == {name: n for name, n in expected["dropped"].items() if n}
    assert sum(source["cells_cut"] for source in told["sources"]) == (store.n_genes > 25).sum() > 0
    tokens = store.read(range(len(store)))
    for token in vocabulary.tokens_of(listed):
        with_gene = np.mean([token in cell for cell in tokens])
        assert told["genes"][str(vocabulary.names_of([token])[0])] == pytest.approx(with_gene)
    assert f"{len(store)} of {made['cells_in_files']} cells of 3 files would be stored" in lines
    assert "5 of 6 genes are in the vocabulary; not: none" in lines


def test_a_dry_run_looks_at_all_files_before_it_fails(files, tmp_path, command):
    command("build_vocabulary", f"--counts={files[0]}", "--output=vocabulary")
    adata = anndata.read_h5ad(files[0])
    adata.X = adata.X / 3
    adata.write_h5ad(tmp_path / "divided.h5ad")
    counts = f"--counts={tmp_path}/divided.h5ad,{files[1]}"
    error = command("tokenize", counts, "--vocabulary=vocabulary", "--dry_run", fails=True)
    assert "1 of 2 files cannot be used" in error and "--skip_bad_files" in error
    twice = command("tokenize", f"--counts={files[1]},{shutil.copy(files[1], tmp_path / 'b.h5ad')}",
                    "--vocabulary=vocabulary", "--dry_run", fails=True)  # fmt: skip
    assert "ids of a store must be distinct" in twice


def test_genes_are_for_a_dry_run(files, command):
    given = (f"--counts={files[0]}", "--vocabulary=v", "--output=store", "--genes=CD74")
    assert "--dry_run" in command("tokenize", *given, fails=True)
