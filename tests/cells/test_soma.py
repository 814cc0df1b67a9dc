"""Experiments that tiledbsoma wrote, and collections shaped as CELLxGENE Census is."""

import pickle
import shutil
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import sparse

from geneformer_jax.cells.counts.options import CountOptions, ReadLimits
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import expand_paths, obs_columns_of, open_counts
from geneformer_jax.cells.formats.soma import library
from geneformer_jax.cells.formats.soma.cells import ChosenRows
from geneformer_jax.cells.formats.soma.stated_sizes import require_stated_sizes
from geneformer_jax.cells.tokenization.tokenizer import tokenize_cells
from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.original_dictionaries import read_vocabulary
from geneformer_jax.reporting.corpus_summary import summarise_corpus
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.object_store import KEY, serve_bucket
from tests.helpers.small_stores import build, cells, same_stores
from tests.helpers.soma_files import (
    BUILD,
    as_census_cells,
    require_tiledbsoma,
    write_census,
    write_experiment,
)

PRIMARY = "is_primary_data == True"
DROPLETS = """is_primary_data == True and assay == "10x 3' v3\""""


@pytest.fixture(scope="module", autouse=True)
def tiledbsoma():
    require_tiledbsoma()


@pytest.fixture(scope="module")
def adata():
    return as_census_cells(cells(n_cells=60, n_genes=83))


@pytest.fixture(scope="module")
def experiment(adata, tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("soma") / "experiment", adata)


@pytest.fixture(scope="module")
def census(adata, tmp_path_factory):
    return write_census(tmp_path_factory.mktemp("soma") / "census", {"homo_sapiens": adata})


@pytest.fixture(scope="module")
def layered(adata, tmp_path_factory):
    """An experiment with logarithms in `data`, counts in `raw`, and halves of them that add up."""
    part = adata.X.copy()
    part.data //= 2
    logs = adata.copy()
    logs.X = adata.X.astype(np.float32).log1p()
    path = tmp_path_factory.mktemp("soma") / "layered"
    return write_experiment(path, logs, layer="data", raw=adata.X, half=part, rest=adata.X - part)


def kept(adata, value_filter):
    """The cells that pass one of the two filters, the plain way."""
    rows = adata.obs["is_primary_data"]
    if "assay" in value_filter:
        rows = rows & (adata.obs["assay"] != "Smart-seq2")
    return adata[rows].copy()


def read(source, cells_per_batch=4096):
    return sparse.vstack([b.counts for b in source.batches(cells_per_batch)]).toarray()


@pytest.mark.parametrize("cells_per_batch", [7, 4096])
@pytest.mark.parametrize("value_filter", [None, PRIMARY, DROPLETS])
def test_counts_ids_and_columns(value_filter, cells_per_batch, experiment, adata):
    expected = adata if value_filter is None else kept(adata, value_filter)
    options = CountOptions(obs_filter=value_filter, limits=ReadLimits(rows=11))
    source = open_counts(experiment, options)
    assert np.array_equal(read(source, cells_per_batch), expected.X.toarray())
    assert source.cell_ids.tolist() == expected.obs_names.tolist()
    assert source.gene_ids.tolist() == expected.var["feature_id"].tolist()
    assert source.symbols.tolist() == expected.var["feature_name"].tolist()
    columns = expected.obs.columns.tolist()
    assert source.obs_columns() == ["soma_joinid", *columns]
    obs = source.obs(columns)
    for name in columns:
        assert obs[name].tolist() == expected.obs[name].tolist()
    totals = np.concatenate([batch.totals for batch in source.batches()])
    assert totals.tolist() == expected.obs["n_counts"].tolist()


def test_cells_of_a_census_are_called_by_their_join_ids(census, adata):
    source = open_counts(census, CountOptions(obs_filter=PRIMARY))
    rows = np.flatnonzero(adata.obs["is_primary_data"])
    assert source.cell_ids.tolist() == rows.astype(str).tolist()
    assert np.array_equal(read(source), adata.X.toarray()[rows])


def test_relative_paths_follow_the_working_folder(experiment, adata, tmp_path, monkeypatch):
    open_counts(experiment)
    for folder in (tmp_path, experiment.parent):
        monkeypatch.chdir(folder)
    assert open_counts(f"soma://{experiment.name}").n_cells == adata.n_obs


def test_columns_are_known_without_the_cells(experiment, census, adata):
    columns = ["soma_joinid", *adata.obs.columns]
    assert obs_columns_of(experiment) == obs_columns_of(census) == columns


def test_how_many_cells_the_filter_drops_is_told_by_data_set(census, adata):
    source = open_counts(census, CountOptions(obs_filter=PRIMARY))
    dropped = adata.obs[~adata.obs["is_primary_data"]]
    assert set(dropped["dataset_id"]) == {"blood"}
    assert source.origin == {
        **BUILD,
        "organism": "homo_sapiens",
        "measurement": "RNA",
        "obs_filter": PRIMARY,
        "cells_in_experiment": 60,
        "cells_dropped_by_obs_filter": len(dropped),
        "dropped_of_data_set": {"blood": [len(dropped), 20]},
    }
    of_blood = f"(dataset_id: {len(dropped)} of 20 of blood)"
    assert source.remark.endswith(f"`obs_filter` drops {len(dropped)} of 60 cells {of_blood}")
    assert "census_build_date 2025-11-08; census_schema_version 2.4.0" in source.remark


def test_of_many_data_sets_those_that_lose_most_are_named():
    dropped = {f"d{n}": (n, 10 * n) for n in range(1, 9)}
    told = ChosenRows(np.arange(1_000), 1_036, dropped).describe()
    assert "drops 36 of 1,036 cells (dataset_id: 8 of 80 of d8, 7 of 70 of d7, 6 of 60" in told
    assert told.endswith("4 of 40 of d4, and 3 more data sets)")


@pytest.mark.parametrize(
    ("asked", "chosen"), [(None, "raw"), ("raw", "raw"), ("half+rest", "half+RNA/X/rest")]
)
def test_layers(asked, chosen, layered, adata):
    if asked is None:
        with pytest.raises(InputError, match=r'several .*"half", "raw", "rest".*`counts_layer`'):
            open_counts(layered)
        asked = "raw"
    source = open_counts(layered, CountOptions(counts_layer=asked))
    assert np.array_equal(read(source), adata.X.toarray())
    assert source.matrix_name == f"RNA/X/{chosen}"


def test_genes_are_never_matched_by_name(adata, vocabulary, tmp_path):
    named = adata.copy()
    named.var = pd.DataFrame(
        {"feature_id": [f"ENSG9{n:010d}" for n in range(83)], "ids": adata.var["feature_id"]}
    ).set_index(adata.var_names)
    path = write_experiment(tmp_path / "experiment", named)
    assert list(open_counts(path).candidate_gene_columns()) == ["feature_id"]
    with pytest.raises(InputError, match="gene"):
        tokenize_cells(path, vocabulary)
    assert tokenize_cells(path, vocabulary, gene_column="ids").lengths.all()


def test_shards_give_the_store_of_the_same_cells_in_h5ad(adata, vocabulary, tmp_path):
    halves = {"a": adata[:25].copy(), "b": adata[25:].copy()}
    paths = [write_experiment(tmp_path / f"soma/{name}", half) for name, half in halves.items()]
    assert expand_paths(f"soma://{tmp_path}/soma/*") == paths == expand_paths(f"{tmp_path}/soma")
    files = []
    for name, half in halves.items():
        files.append(tmp_path / f"{name}.h5ad")
        kept(half, DROPLETS).write_h5ad(files[-1])
    expected, _ = build(tmp_path / "expected", files, vocabulary, obs=["assay"])
    options = {"obs": ["assay"], "obs_filter": DROPLETS}
    for shard in (1, 0):
        build(tmp_path / "store", paths, vocabulary, shard=(shard, 2), finish=False, **options)
    store, counts = build(tmp_path / "store", paths, vocabulary, **options)
    same_stores(store, expected)
    assert [source["cells_in_experiment"] for source in counts["sources"]] == [25, 35]


# Not marked as of reference data, whose tests may not be skipped in CI: this one may, where
# tiledbsoma cannot be installed. Without the data it fails there all the same.
@pytest.mark.parametrize("shape", ["experiment", "census"])
def test_real_cells_give_the_tokens_of_the_h5ad(shape, data_dir, tmp_path):
    real = anndata.read_h5ad(data_dir / "cells/pbmc_facs_zheng.h5ad")[:300].copy()
    real = as_census_cells(real)
    vocabulary = read_vocabulary(data_dir / "dictionaries/v1_gc30M")
    expected = tokenize_cells(kept(real, DROPLETS), vocabulary)
    path = tmp_path / shape
    if shape == "census":
        write_census(path, {"homo_sapiens": real})
    else:
        write_experiment(path, real)
    got = tokenize_cells(path, vocabulary, obs_filter=DROPLETS)
    assert len(got.lengths) == len(expected.lengths) > 100
    rows = range(len(got.lengths))
    for one, other in zip(got.read(rows), expected.read(rows), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"measurement": "ATAC"}, 'no measurement "ATAC"; it has: RNA'),
        ({"measurement": "RNa"}, 'did you mean "RNA"'),
        ({"counts_layer": "rwa"}, 'no layer "rwa" (did you mean "raw"?)'),
        ({"organism": "homo_sapiens"}, "is one experiment, not a Census; leave `organism` out"),
        ({"gene_column": "feature_di"}, 'did you mean "feature_id"'),
        ({"obs_filter": 'asay == "a"'}, 'obs has no column "asay" (did you mean "assay"?)'),
        ({"obs_filter": "assay =="}, "assay == is not understood (Could not parse"),
        ({"obs_filter": "assay == 3"}, "a value is not of its column's type"),
        ({"obs_filter": 'is_primary_data == "True"'}, "is not understood"),
        ({"obs_filter": 'n_counts > "three"'}, "is not understood"),
        ({"obs_filter": "assay"}, "is not understood"),
        ({"obs_filter": "__import__('os').getcwd()"}, "is not understood"),
        ({"obs_filter": 'assay == "none"'}, "none of its 60 cells passes `obs_filter`"),
        ({"obs_filter": 3}, "`obs_filter` is 3, but is a text"),
    ],
)
def test_bad_options_are_told_in_one_line(options, words, experiment):
    with pytest.raises(InputError) as error:
        open_counts(experiment, CountOptions(**options))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("ms", "SOMACollection, but counts are read from a SOMAExperiment or a Census"),
        ("ms/RNA", "SOMAMeasurement, but.*name the folder above it that holds obs and ms"),
        ("obs", "obs is no TileDB-SOMA"),
        ("none", "none does not exist; give the folder of an experiment"),
    ],
)
def test_paths_that_are_no_experiment(place, words, experiment):
    with pytest.raises(InputError, match=words):
        open_counts(f"soma://{experiment}/{place}")


def test_a_collection_of_experiments_lists_them(census):
    with pytest.raises(InputError, match=r"name one of those in it \(homo_sapiens\)"):
        open_counts(census / "census_data")


def test_a_damaged_experiment(experiment, tmp_path):
    path = shutil.copytree(experiment, tmp_path / "experiment")
    for fragment in (path / "ms/RNA/X/raw/__fragments").rglob("*.tdb"):
        fragment.write_bytes(fragment.read_bytes()[:40])
    with pytest.raises(InputError, match=r"experiment cannot be read as TileDB-SOMA: .*copy"):
        read(open_counts(path, CountOptions(counts_layer="raw")))


def test_the_organism_of_a_census_must_be_said(adata, tmp_path):
    path = write_census(tmp_path / "census", {"homo_sapiens": adata, "mus_musculus": adata[:9]})
    with pytest.raises(InputError, match="homo_sapiens, mus_musculus; name one by `organism`"):
        open_counts(path)
    with pytest.raises(InputError, match=r'no organism "mouse"; it has: homo_sapiens, mus_mus'):
        open_counts(path, CountOptions(organism="mouse"))
    assert open_counts(path, CountOptions(organism="mus_musculus")).n_cells == 9


@pytest.mark.parametrize("option", ["measurement", "obs_filter", "organism"])
def test_options_of_experiments_are_refused_for_others(option, adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    options = CountOptions(**{option: PRIMARY})
    for opened in (lambda: open_counts(tmp_path / "cells.h5ad", options),
                   lambda: AnnDataSource(adata, options)):  # fmt: skip
        with pytest.raises(InputError, match=f"no TileDB-SOMA experiment, for which `{option}` is"):
            opened()


def test_an_experiment_that_is_not_complete(tmp_path):
    import tiledbsoma

    path = tmp_path / "experiment"
    tiledbsoma.Experiment.create(str(path)).close()
    for opens in (open_counts, obs_columns_of):
        with pytest.raises(InputError, match=r"Experiment in it has no obs \(it holds nothing\)"):
            opens(path)
    with tiledbsoma.open(str(path), "w") as opened:
        schema = pa.schema([("soma_joinid", pa.int64()), ("a", pa.int32())])
        opened.add_new_dataframe("obs", schema=schema, domain=[(0, 2)])
        measurements = opened.add_new_collection("ms", tiledbsoma.Collection)
        measurements.add_new_collection("RNA", tiledbsoma.Measurement)
    with pytest.raises(InputError, match=r"SOMAMeasurement in it has no var \(it holds nothing\)"):
        open_counts(path)


def test_a_dense_layer(experiment, tmp_path):
    import tiledbsoma

    path = shutil.copytree(experiment, tmp_path / "experiment")
    with tiledbsoma.open(f"{path}/ms/RNA/X", "w") as layers:
        layers.add_new_dense_ndarray("dense", type=pa.float32(), shape=(60, 83))
    assert open_counts(path).matrix_name == "RNA/X/raw"
    with pytest.raises(InputError, match="is a SOMADenseNDArray, but sparse layers are read"):
        read(open_counts(path, CountOptions(counts_layer="dense")))


def test_values_of_a_gene_that_is_not_listed(experiment, tmp_path):
    import tiledbsoma

    path = shutil.copytree(experiment, tmp_path / "experiment")
    with tiledbsoma.open(f"{path}/ms/RNA/X", "w") as layers:
        layer = layers.add_new_sparse_ndarray("wide", type=pa.float32(), shape=(60, 99))
        entry = sparse.coo_matrix(([1.0], ([5], [83])), (60, 99), np.float32)
        layer.write(pa.SparseCOOTensor.from_scipy(entry))
    with pytest.raises(InputError, match="values of genes that var lacks"):
        read(open_counts(path, CountOptions(counts_layer="wide")))


def test_sizes_that_cannot_be_are_refused_before_they_are_believed(
    experiment, census, layered, tmp_path
):
    """Each size in turn, in all descriptions of groups, arrays and fragments."""
    for whole in (experiment, census, layered):
        require_stated_sizes(whole)
    copy = shutil.copytree(experiment, tmp_path / "copy")
    kinds = ("__group", "__meta", "__schema", "__enumerations")
    files = [path for path in copy.rglob("*") if path.parent.name in kinds and path.is_file()]
    assert {path.parent.name for path in files} == set(kinds)
    fragments = list(copy.rglob("__fragment_metadata.tdb"))
    assert fragments
    for path in [*fragments, *files]:
        content = path.read_bytes()
        starts = [0]
        if path in fragments:
            # The footer ends with the place of the last tile and its own length.
            starts.append(int.from_bytes(content[-16:-8], "little"))
        places = []
        for start in starts:
            tile = start + 34 + int.from_bytes(content[start + 30 : start + 34], "little")
            # Stored, unpacked; of filters; chunks; of the first of them unpacked, stored, notes.
            places += [start + 4, start + 12, start + 30, tile, tile + 8, tile + 12, tile + 16]
        for place in places:
            damaged = bytearray(content)
            damaged[place + 3] |= 0xA0
            path.write_bytes(damaged)
            with pytest.raises(OSError, match=f"{path.name} is damaged"):
                require_stated_sizes(copy)
        path.write_bytes(content)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=f"{path.name} is damaged") as refused:
        open_counts(copy)
    assert "\n" not in str(refused.value)


@pytest.fixture
def bucket(census, monkeypatch):
    """The folder of the Census as a bucket of S3, and where TileDB looks for it."""
    with serve_bucket(census.parent) as address:
        options = {"ENDPOINT_OVERRIDE": address, "SCHEME": "http", "REGION": "us-east-1",
                   "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": KEY,
                   "USE_VIRTUAL_ADDRESSING": "false"}  # fmt: skip
        for name, value in options.items():
            monkeypatch.setenv(f"TILEDB_VFS_S3_{name}", value)
        # Settings are read once for each process.
        library.context_of.cache_clear()
        yield "soma://s3://bucket"
        library.context_of.cache_clear()


@pytest.mark.slow
def test_a_census_in_an_object_store(bucket, census):
    source = open_counts(f"{bucket}/census", CountOptions(obs_filter=PRIMARY))
    local = open_counts(census, CountOptions(obs_filter=PRIMARY))
    assert np.array_equal(read(source), read(local))
    assert source.origin == local.origin
    with pytest.raises(InputError, match=r"s3://bucket/none cannot be read.*TILEDB_VFS_S3_REGION"):
        open_counts(f"{bucket}/none")


def test_a_source_can_be_sent_to_another_process(experiment, adata):
    source = pickle.loads(pickle.dumps(open_counts(experiment)))
    assert np.array_equal(read(source), adata.X.toarray())


@pytest.mark.slow
def test_a_forked_process_reads_what_was_opened_before(experiment):
    """Threads are not forked: settings that are shared with the parent make the library hang."""
    program = (
        "import multiprocessing, sys\n"
        "from geneformer_jax.cells.formats.open import open_counts\n"
        "def total(s): return sum(int(b.counts.sum()) for b in s.batches())\n"
        "s = open_counts(sys.argv[1]); t = total(s)\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "    assert pool.map_async(total, [s]).get(60) == [t] and t > 0\n"
    )
    subprocess.run([sys.executable, "-c", program, str(experiment)], check=True, timeout=120)


def test_the_command(census, vocabulary, tmp_path, monkeypatch, capsys):
    vocabulary.save(tmp_path / "vocabulary", {})
    given = [f"--counts=soma://{census}", f"--vocabulary={tmp_path / 'vocabulary'}"]
    status, _, error = run_command(
        "tokenize", [*given, f"--output={tmp_path / 'a'}", "--obs_filter=asay == 1"],
        monkeypatch, capsys,
    )  # fmt: skip
    assert status == 1 and not (tmp_path / "a").exists()
    assert_one_line(error)
    status, output, _ = run_command(
        "tokenize", [*given, f"--output={tmp_path / 'b'}", f"--obs_filter={PRIMARY}"],
        monkeypatch, capsys,
    )  # fmt: skip
    assert status == 0
    assert "--obs_filter drops 10 of 60 cells (dataset_id: 10 of 20 of blood)" in output
    (remark,) = summarise_corpus(tmp_path / "b").remarks
    assert remark.startswith(f"{census}: organism homo_sapiens; census_build_date 2025-11-08")
    assert remark.endswith("drops 10 of 60 cells (dataset_id: 10 of 20 of blood)")


def test_tables_of_cells_that_are_cut_are_told(experiment, tmp_path):
    path = shutil.copytree(experiment, tmp_path / "soma")
    parts = sorted(path.glob("obs/__fragments/*/a*.tdb"))
    assert len(parts) > 3
    for part in parts:
        whole = part.read_bytes()
        part.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match="cannot be read as TileDB-SOMA"):
            source = open_counts(path)
            list(source.batches())
            source.obs()
        part.write_bytes(whole)
