"""The doors build_vocabulary and tokenize, and the pipeline between counts and cell store."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds
from count_files import example_cells
from scipy import sparse

from geneformer_jax.cells.cell_store import CellStore
from geneformer_jax.cells.counts import open_counts
from geneformer_jax.cells.options import (
    parse_exclusions,
    parse_share,
    read_orthologs,
    share_of,
)
from geneformer_jax.cells.quality import QualityRules
from geneformer_jax.cells.store_building import Reading, StoreBuild
from geneformer_jax.cells.tokenization import (
    NO_GENE,
    NO_RULES,
    Recipe,
    check_max_length,
    tokenize_cells,
)
from geneformer_jax.cells.vocabulary import V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS, GeneVocabulary
from geneformer_jax.cells.vocabulary_building import GeneTable, build_vocabulary, measure_corpus
from geneformer_jax.common.errors import InputError

PROJECT = Path(__file__).resolve().parents[2]


def cells(seed=0, name="c", **options):
    adata = example_cells(seed=seed, **options)
    adata.obs_names = [f"{name}{n}" for n in range(adata.n_obs)]
    return adata


@pytest.fixture
def files(tmp_path):
    """Three files of other sizes with the same genes; the empty cell in the middle of each."""
    folder = tmp_path / "counts"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        cells(seed, name, n_cells=20 + 9 * seed).write_h5ad(folder / f"{name}.h5ad")
    return sorted(folder.iterdir())


@pytest.fixture
def vocabulary(files):
    corpus = measure_corpus(files, open_counts, None, NO_RULES)
    return build_vocabulary(corpus, symbols={}, special_tokens=V1_SPECIAL_TOKENS, species="human")


def build(folder, paths, vocabulary, obs=(), share=(0, 1), skip=False, finish=True, **options):
    """What the door does, without a process of its own."""
    reading = Reading(prefix_cell_ids=options.pop("prefix_cell_ids", False))
    recipe = Recipe(max_length=options.pop("max_length", 2048), **options)
    run = StoreBuild(folder, vocabulary, recipe, reading, list(obs))
    run.survey(paths, skip)
    run.write(share, skip)
    said = list(run.finish({}, skip)) if finish else []
    return CellStore.open(folder) if finish else None, said


def door(name, *arguments, cwd):
    command = [sys.executable, "-m", f"geneformer_jax.{name}", *arguments]
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def same_stores(one, other):
    assert one.cell_ids.tolist() == other.cell_ids.tolist()
    pd.testing.assert_frame_equal(one.obs, other.obs)
    for a, b in zip(one.read(range(len(one))), other.read(range(len(other))), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in other.shards]


def slow_tokens(adata, vocabulary):
    """Each cell's tokens, the obvious way (no repeated ids)."""
    tokens = vocabulary.tokens_of(adata.var["ensembl_id"])
    rows = []
    for counts, total in zip(adata.X.toarray(), adata.obs["n_counts"], strict=True):
        known = [c for c in np.flatnonzero(counts) if tokens[c] >= 0]
        medians = [vocabulary.medians[tokens[c] - vocabulary.first_gene_token] for c in known]
        value = {
            c: counts[c] * (1 / total) * 10_000 * (1 / m)
            for c, m in zip(known, medians, strict=True)
        }
        rows.append([int(tokens[c]) for c in sorted(known, key=lambda c: -value[c])])
    return rows


# The doors themselves


def test_from_counts_to_a_store_that_tfds_reads(files, tmp_path):
    counts = str(files[0].parent)
    said = door("build_vocabulary", f"--counts={counts}", "--output=vocabulary", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    arguments = (f"--counts={counts}", "--vocabulary=vocabulary", "--output=store")
    first = door("tokenize", *arguments, "--obs=cell_type,filter_pass", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "left out, no gene of the vocabulary: 3" in first.stdout
    assert "84 of 87 cells" in first.stdout
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
    story = json.loads((store.folder / "provenance.json").read_text())
    assert story["counts"]["dropped"] == {NO_GENE: 3}
    assert [source["matched_gene_ids"] for source in story["counts"]["sources"]] == [83, 83, 83]
    again = door("tokenize", *arguments, "--obs=cell_type,filter_pass", cwd=tmp_path)
    assert again.returncode == 0 and "is complete" in again.stdout
    verified = door("tokenize", "--output=store", "--verify", cwd=tmp_path)
    assert verified.returncode == 0 and "84 cells are as written" in verified.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("build_vocabulary", ["--counts=counts", "--output=counts"], "already holds"),
        ("build_vocabulary", ["--counts=counts", "--output=v", "--biotypes=x"], "--gene_table"),
        ("tokenize", ["--counts=counts", "--vocabulary=counts", "--output=s"], "no vocabulary"),
    ],
)
def test_bad_flags_end_in_one_line(files, tmp_path, name, arguments, message):
    said = door(name, *arguments, cwd=tmp_path)
    assert said.returncode == 1 and message in said.stderr
    assert "Traceback" not in said.stderr and len(said.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts"]


@pytest.mark.multiprocess
def test_a_killed_run_goes_on(tmp_path, files, vocabulary):
    """Killed when its first file is whole, then run again: the same store."""
    vocabulary.save(tmp_path / "vocabulary")
    arguments = [f"--counts={files[0].parent}", "--vocabulary=vocabulary", "--output=store"]
    command = [sys.executable, "-m", "geneformer_jax.tokenize", *arguments, "--obs=donor"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    quiet = subprocess.DEVNULL
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=quiet, stderr=quiet)
    while run.poll() is None and not list(tmp_path.glob("store/sources/a-*/source.json")):
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    whole, _ = build(tmp_path / "whole", files, vocabulary, ["donor"])
    again, _ = build(tmp_path / "store", files, vocabulary, ["donor"])
    same_stores(again, whole)
    assert not list((tmp_path / "store").rglob("*.partial"))


# Many files, many processes


def test_shares_of_the_files_join_to_the_same_store(tmp_path, files, vocabulary):
    whole, _ = build(tmp_path / "whole", files, vocabulary, ["cell_type"])
    parts = tmp_path / "parts"
    build(parts, files, vocabulary, ["cell_type"], share=(1, 2), finish=False)
    with pytest.raises(InputError, match=r"2 of 3 files are not tokenised yet.*a\.h5ad"):
        build(parts, files, vocabulary, ["cell_type"], share=(1, 2))
    with pytest.raises(InputError, match="not complete"):
        CellStore.open(parts)
    build(parts, files, vocabulary, ["cell_type"], share=(0, 2), finish=False)
    joined, _ = build(parts, files, vocabulary, ["cell_type"], share=(0, 2))
    same_stores(joined, whole)


def test_a_finished_file_is_not_read_again(tmp_path, files, vocabulary):
    store = tmp_path / "store"
    build(store, files, vocabulary, share=(0, 2), finish=False)
    written = {path: path.stat().st_mtime_ns for path in store.glob("sources/*/source.json")}
    assert len(written) == 2
    build(store, files, vocabulary)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_files_may_be_added_to_a_complete_store(tmp_path, files, vocabulary):
    first, _ = build(tmp_path / "store", files[1:], vocabulary, ["donor"])
    shards = {shard.path: shard.path.stat().st_mtime_ns for shard in first.shards}
    added, said = build(tmp_path / "store", files[:1], vocabulary, ["donor"])
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    whole, _ = build(tmp_path / "whole", [*files[1:], files[0]], vocabulary, ["donor"])
    same_stores(added, whole)
    assert "84 of 87 cells" in said[0]


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
    for share in ((0, 2), (1, 2)):
        build(tmp_path / "store", paths, vocabulary, share=share, skip=True, finish=False)
    run = StoreBuild(tmp_path / "store", vocabulary, Recipe(2048), Reading(), [])
    run.survey(paths, skip_bad_files=True)
    said = "\n".join(run.finish({}, skip_bad_files=True))
    assert "SKIPPED" in said and "bb.h5ad" in said and "bc.h5ad" in said
    store = CellStore.open(tmp_path / "store")
    whole, _ = build(tmp_path / "whole", files, vocabulary)
    same_stores(store, whole)
    skipped = json.loads((store.folder / "provenance.json").read_text())["counts"]["skipped_files"]
    assert sorted(Path(path).name for path in skipped) == ["bb.h5ad", "bc.h5ad"]


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
    assert "--prefix_cell_ids" in str(raised.value)
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


# Genes


def write(adata, path):
    adata.write_h5ad(path)
    return path


def with_ids(adata, ids):
    copy = adata.copy()
    copy.var = pd.DataFrame(index=ids)
    return copy


def test_nothing_matches(tmp_path, vocabulary):
    path = write(with_ids(cells(), [f"probe{n}" for n in range(83)]), tmp_path / "x.h5ad")
    with pytest.raises(InputError, match="0 of 83 gene ids") as raised:
        build(tmp_path / "store", [path], vocabulary)
    message = str(raised.value)
    assert "probe0, probe1, probe2" in message and vocabulary.gene_ids[2] in message
    assert "\n" not in message and not (tmp_path / "store").exists()


def test_names_instead_of_ids_are_found_if_asked(tmp_path, files, vocabulary):
    by_name = anndata.read_h5ad(files[0])
    by_name.var = pd.DataFrame(index=by_name.var["gene_symbol"].to_numpy())
    path = write(by_name, tmp_path / "names.h5ad")
    with pytest.raises(InputError, match="are gene names: use --symbols=names"):
        build(tmp_path / "store", [path], vocabulary)
    named, _ = build(tmp_path / "store", [path], vocabulary, symbols="names")
    by_id, _ = build(tmp_path / "ids", [files[0]], vocabulary)
    for a, b in zip(named.read(range(19)), by_id.read(range(19)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_and_mixed_species_are_refused(tmp_path, vocabulary):
    mouse = [f"ENSMUSG{n:011d}" for n in range(83)]
    path = write(with_ids(cells(), mouse), tmp_path / "mouse.h5ad")
    with pytest.raises(InputError, match=r"has mouse gene ids, but the vocabulary is of human"):
        build(tmp_path / "store", [path], vocabulary)
    mixed = write(with_ids(cells(), [*vocabulary.gene_ids[:60], *mouse[:23]]), tmp_path / "m.h5ad")
    with pytest.raises(InputError, match=r"several species \(60 human, 23 mouse\)"):
        build(tmp_path / "store", [mixed], vocabulary)
    with pytest.raises(InputError, match='give --species="mouse"'):
        corpus = measure_corpus([path], open_counts, None, NO_RULES)
        build_vocabulary(corpus, symbols={}, special_tokens=V1_SPECIAL_TOKENS, species="human")


def test_orthologs(tmp_path, files, vocabulary):
    human = anndata.read_h5ad(files[0])
    mouse = with_ids(human, [f"ENSMUSG{n:011d}.3" for n in range(83)])
    path = write(mouse, tmp_path / "mouse.h5ad")
    pairs = [f"ENSMUSG{n:011d}\t{gene}" for n, gene in enumerate(human.var["ensembl_id"])]
    (tmp_path / "pairs.tsv").write_text("mouse\thuman\n" + "\n".join(pairs) + "\n")
    orthologs = read_orthologs(tmp_path / "pairs.tsv")
    translated, _ = build(tmp_path / "store", [path], vocabulary, orthologs=orthologs)
    direct, _ = build(tmp_path / "human", [files[0]], vocabulary)
    for a, b in zip(translated.read(range(19)), direct.read(range(19)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_ortholog_table(tmp_path):
    path = tmp_path / "pairs.csv"
    gene = "ENSMUSG0000000000"
    pairs = [(f"{gene}1.2", "H1"), ("m2", "H1"), ("M3", "H2"), ("M3", "H3"), ("M4", ""), ("", "H5")]
    pairs.append((f"{gene}1", "H1"))
    path.write_text("mouse,human\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    assert read_orthologs(path) == {f"{gene}1": "H1", "M2": "H1"}
    path.write_text("mouse,human\nM3,H2\nM3,H3\n")
    with pytest.raises(InputError, match="exactly one ortholog"):
        read_orthologs(path)
    path.write_text("mouse\nM3\n")
    with pytest.raises(InputError, match="has 1 column"):
        read_orthologs(path)
    path.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(InputError, match="no table"):
        read_orthologs(path)
    with pytest.raises(InputError, match="does not exist"):
        read_orthologs(tmp_path / "nothing.tsv")


# Which cells, and in memory


def test_rules_drop_cells_and_say_how_many(tmp_path, files, vocabulary):
    adata = anndata.read_h5ad(files[2])
    rules = QualityRules("filter_pass", {"cell_type": ["B"]}, None, None, 20)
    store, said = build(tmp_path / "store", [files[2]], vocabulary, quality=rules)
    passes = (adata.obs["filter_pass"] == 1) & (adata.obs["cell_type"] != "B")
    enough = np.asarray((adata.X > 0).sum(1)).ravel() >= 20
    assert store.cell_ids.tolist() == adata.obs_names[passes & enough].tolist()
    dropped = json.loads((store.folder / "provenance.json").read_text())["counts"]["dropped"]
    assert sum(dropped.values()) == adata.n_obs - len(store) and len(dropped) == 4
    assert any("filter_pass is not 1" in line for line in said)


@pytest.mark.parametrize("special_tokens", [V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS])
def test_cells_in_memory(vocabulary, special_tokens):
    vocabulary = GeneVocabulary(
        vocabulary.gene_ids, vocabulary.symbols, vocabulary.medians, special_tokens
    )
    adata = cells(5, "m")
    before = adata.copy()
    tokenized = tokenize_cells(adata, vocabulary, max_length=12)
    special = len(special_tokens) - 2
    expected = [row[: 12 - special] for row in slow_tokens(adata, vocabulary)]
    rows = [row.tolist() for row in tokenized.read(range(len(tokenized)))]
    if special:
        assert all(row[0] == vocabulary.cls_id and row[-1] == vocabulary.eos_id for row in rows)
        rows = [row[1:-1] for row in rows]
    assert rows == [row for row in expected if row]
    assert tokenized.rows.tolist() == [n for n, row in enumerate(expected) if row]
    assert tokenized.cell_ids.tolist() == adata.obs_names[tokenized.rows].tolist()
    assert tokenized.lengths.tolist() == [len(row) + special for row in rows]
    assert tokenized.dropped == {NO_GENE: 1} and tokenized.max_length == 12
    assert (adata.X != before.X).nnz == 0 and adata.obs.equals(before.obs)


def test_no_cell_is_left(vocabulary):
    adata = cells()[[57 // 2]].copy()
    with pytest.raises(InputError):
        tokenize_cells(adata, vocabulary)


def test_no_room_for_a_gene(vocabulary):
    with pytest.raises(InputError, match="leaves no room"):
        tokenize_cells(cells(), vocabulary, max_length=-1)
    v2 = GeneVocabulary(np.array(["G"]), [""], np.ones(1), V2_SPECIAL_TOKENS)
    check_max_length(3, v2)
    with pytest.raises(InputError, match="leaves no room"):
        check_max_length(2, v2)


def test_repeated_gene_ids_are_summed(vocabulary):
    adata = cells(6)
    split = sparse.hstack([adata.X, adata.X[:, :10]]).tocsr().astype(np.int32)
    ids = [*adata.var["ensembl_id"], *(f"{gene}.7" for gene in adata.var["ensembl_id"][:10])]
    adata.obs["n_counts"] *= 2
    obs = adata.obs[["n_counts"]]
    twice = anndata.AnnData(split, obs=obs, var=pd.DataFrame({"ensembl_id": ids}))
    summed = adata.copy()
    dense = summed.X.toarray()
    dense[:, :10] *= 2
    summed.X = sparse.csr_matrix(dense)
    a, b = (tokenize_cells(each, vocabulary) for each in (twice, summed))
    for one, other in zip(a.read(range(len(a))), b.read(range(len(b))), strict=True):
        np.testing.assert_array_equal(one, other)
    assert a.match.matched > a.match.genes == b.match.genes


# The vocabulary's door


def test_vocabulary_of_a_corpus(files, tmp_path):
    table = tmp_path / "genes.tsv"
    adatas = [anndata.read_h5ad(path) for path in files]
    ids = sorted(adatas[0].var["ensembl_id"])
    lines = [
        f"{gene}.4\tN{n}\t{'protein_coding' if n % 2 else 'miRNA'}" for n, gene in enumerate(ids)
    ]
    table.write_text("gene_id\tsymbol\tbiotype\n" + "\n".join(lines[:-3]) + "\n")
    genes = GeneTable(table)
    with pytest.raises(InputError, match='did you mean "miRNA"'):
        genes.genes(["miRNAs"])
    wanted = genes.genes(["protein_coding"])
    corpus = measure_corpus(files, open_counts, wanted, NO_RULES)
    vocabulary = build_vocabulary(
        corpus,
        symbols=genes.symbols(),
        special_tokens=V2_SPECIAL_TOKENS,
        species="human",
        min_cells=30,
    )
    values = {}
    for adata in adatas:
        scaled = adata.X.toarray() / np.maximum(adata.obs["n_counts"], 1).to_numpy()[:, None] * 1e4
        for column, gene in enumerate(adata.var["ensembl_id"]):
            values.setdefault(gene, []).extend(scaled[scaled[:, column] > 0, column])
    expected = [gene for gene in ids[1:-3:2] if len(values[gene]) >= 30]
    assert vocabulary.gene_ids.tolist() == expected and 0 < len(expected) < 40
    medians = [np.median(values[gene]) for gene in expected]
    np.testing.assert_allclose(vocabulary.medians, medians, rtol=1e-14)
    assert vocabulary.symbols.tolist() == [f"N{ids.index(gene)}" for gene in expected]
    assert corpus.counts["genes_not_in_table"] == 83 - 40
    few = corpus.counts["genes_in_too_few_cells"] + corpus.counts["genes_not_detected"]
    assert few == 40 - len(expected)
    with pytest.raises(InputError, match="lower --min_cells"):
        build_vocabulary(
            corpus, symbols={}, special_tokens=V1_SPECIAL_TOKENS, species="human", min_cells=999
        )
    with pytest.raises(InputError, match="is in the gene table"):
        measure_corpus(files, open_counts, {"other"}, NO_RULES)


def test_symbols_come_from_the_source_and_may_be_the_ids(tmp_path, files, vocabulary):
    adata = anndata.read_h5ad(files[0])
    names = dict(zip(adata.var["ensembl_id"], adata.var["gene_symbol"], strict=True))
    assert vocabulary.symbols.tolist() == [names[gene] for gene in vocabulary.gene_ids]
    by_name = with_ids(adata, adata.var["gene_symbol"].to_numpy())
    path = write(by_name, tmp_path / "names.h5ad")
    corpus = measure_corpus([path], open_counts, None, NO_RULES)
    named = build_vocabulary(corpus, symbols={}, special_tokens=V1_SPECIAL_TOKENS, species="human")
    store, _ = build(tmp_path / "store", [path], named)
    adata.var["ensembl_id"] = adata.var["gene_symbol"]
    assert [r for r in slow_tokens(adata, named) if r] == [
        r.tolist() for r in store.read(range(19))
    ]


def test_quality_rules_choose_the_cells_of_the_medians(files):
    rules = QualityRules("filter_pass", {}, None, None, None)
    corpus = measure_corpus(files, open_counts, None, rules)
    adatas = [anndata.read_h5ad(path) for path in files]
    kept = sum(int((adata.obs["filter_pass"] == 1).sum()) for adata in adatas)
    assert corpus.counts["cells: filter_pass is not 1"] == 87 - kept
    expected = sum((a.X[(a.obs["filter_pass"] == 1).to_numpy()] > 0).sum() for a in adatas)
    assert corpus.medians.detected.sum() == expected


# What flags mean


def test_shares():
    assert parse_share("") == (0, 1) and parse_share("2/3") == (2, 3)
    assert share_of("abcdefg", (1, 3)) == ["b", "e"]
    for text in ("3/3", "1", "a/b", "1/0", "-1/3", "1/2/3"):
        with pytest.raises(InputError, match="must be i/n"):
            parse_share(text)


def test_exclusions():
    assert parse_exclusions(["a=x", "b = y z", "a=w=v"]) == {"a": ["x", "w=v"], "b": ["y z"]}
    for text in ("a", "=x"):
        with pytest.raises(InputError, match="column=value"):
            parse_exclusions([text])
