import json
import sys

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.tokenization.tokenizer import NO_GENE
from geneformer_jax.cells.tokenization.vocabulary import (
    V1_SPECIAL_TOKENS,
    V2_SPECIAL_TOKENS,
    GeneVocabulary,
)
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.log import show_log
from geneformer_jax.interop import store_exchange
from geneformer_jax.interop.dataset_folders import write_dataset_folder
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.toy import toy_vocabulary

GENES = 50


def vocabulary(special_tokens=V1_SPECIAL_TOKENS) -> GeneVocabulary:
    return toy_vocabulary(special_tokens, GENES)


def random_table(cells: int, special_tokens=V1_SPECIAL_TOKENS, token_type=None) -> pa.Table:
    rng = np.random.default_rng(cells)
    first = len(special_tokens)
    rows = [(first + rng.permutation(GENES)[: rng.integers(1, 20)]).tolist() for _ in range(cells)]
    if special_tokens == V2_SPECIAL_TOKENS:
        rows = [[2, *row, 3] for row in rows]
    return pa.table(
        {
            "input_ids": pa.array(rows, pa.list_(token_type or pa.int64())),
            "cell_id": [f"cell-{number}" for number in range(cells)],
            "tissue": [("heart", "lung", None)[number % 3] for number in range(cells)],
            "donor": pa.array(range(cells), pa.int64()),
            "score": pa.array(rng.random(cells)),
            "kept": [number % 2 == 0 for number in range(cells)],
            "length": pa.array([len(row) for row in rows], pa.int64()),
        }
    )


@pytest.mark.parametrize("special_tokens", [V1_SPECIAL_TOKENS, V2_SPECIAL_TOKENS])
@pytest.mark.parametrize("ending", [".dataset", ".parquet"])
def test_dataset_to_store_and_back_is_the_same_dataset(tmp_path, special_tokens, ending):
    kind = pa.int16() if special_tokens == V1_SPECIAL_TOKENS else pa.int64()
    table = random_table(2345, special_tokens, kind)
    source, store, back = (tmp_path / name for name in ("in" + ending, "store", "out" + ending))
    if ending == ".dataset":
        datasets.Dataset(table).save_to_disk(source, num_shards=2)
    else:
        pq.write_table(table, source)
    counts = store_exchange.dataset_to_store(source, store, vocabulary(special_tokens))
    assert counts["cells"] == counts["cells_in_files"] == 2345
    assert counts["dropped"] == {NO_GENE: 0} and counts["columns_left_out"] == []
    store_exchange.store_to_dataset(store, back)
    if ending == ".dataset":
        found = datasets.load_from_disk(back)
        assert found.features == datasets.Dataset(table).features
        found = found.data.table.combine_chunks()
    else:
        found = pq.read_table(back)
    assert found.to_pydict() == table.to_pydict()
    assert found.schema.remove_metadata() == table.schema
    assert list(CellStore.open(store).verify())


@pytest.mark.parametrize("ending", [".dataset", ".parquet"])
def test_the_last_line_of_progress_counts_all_cells(toy_store, tmp_path, capsys, ending):
    show_log()
    store_exchange.store_to_dataset(toy_store.folder, tmp_path / f"out{ending}")
    lines = [line for line in capsys.readouterr().err.splitlines() if "converting" in line]
    assert "240 of 240 cells" in lines[-1]


def test_the_store_holds_what_the_dataset_held_and_its_provenance(tmp_path):
    table = random_table(300)
    source, folder = tmp_path / "in.parquet", tmp_path / "store"
    pq.write_table(table, source)
    store_exchange.dataset_to_store(source, folder, vocabulary(), max_length=40)
    store = CellStore.open(folder)
    assert [cell.tolist() for cell in store.read(range(300))] == table["input_ids"].to_pylist()
    assert store.lengths.tolist() == table["length"].to_pylist()
    assert store.obs.index.tolist() == table["cell_id"].to_pylist()
    assert store.max_length == 40
    assert store.vocabulary.hash == vocabulary().hash
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["command"] == "convert" and provenance["counts"]["cells"] == 300
    assert provenance["inputs"][0]["name"] == "in.parquet"
    record = tfds.builder_from_directory(str(folder)).as_data_source(split="train")[7]
    assert record["tokens"].tolist() == table["input_ids"][7].as_py()
    assert record["cell_id"] == b"cell-7" and record["donor"] == 7


@pytest.mark.parametrize("ending", [".dataset", ".parquet", " saved again.dataset"])
def test_another_vocabulary_than_the_stated_one_is_refused(toy_store, tmp_path, ending):
    source = tmp_path / f"out{ending[-8:]}"
    store_exchange.store_to_dataset(toy_store.folder, source)
    if ending.startswith(" "):
        parts = [datasets.load_from_disk(source).select(rows) for rows in ([3, 5], [8, 9])]
        source = tmp_path / f"out{ending}"
        datasets.concatenate_datasets(parts).map(lambda _: {"lab": "ours"}).save_to_disk(source)
    same = toy_store.vocabulary
    counts = store_exchange.dataset_to_store(source, tmp_path / "store", same)
    assert counts["states_vocabulary"]
    # As many genes with the same medians: only their names tell that each token is another one.
    other = GeneVocabulary(np.char.add(same.gene_ids, "x"), same.symbols, same.medians)
    with pytest.raises(InputError, match=rf"vocabulary {same.hash[:12]}, but {other.hash[:12]}"):
        store_exchange.dataset_to_store(source, tmp_path / "no store", other)


def test_a_data_set_that_states_no_vocabulary_is_taken_on_trust(tmp_path, convert):
    vocabulary().save(tmp_path / "vocabulary")
    pq.write_table(random_table(5), tmp_path / "in.parquet")
    arguments = ["--source={0}/in.parquet", "--target={0}/store", "--vocabulary={0}/vocabulary"]
    status, said, _ = convert(*(each.format(tmp_path) for each in arguments))
    assert status == 0 and "taken on trust" in said
    provenance = json.loads((tmp_path / "store" / "provenance.json").read_text())
    assert provenance["counts"]["states_vocabulary"] is False


def rows_of(table: pa.Table) -> pa.Table:
    """Tokens as int16, with the columns that every store has."""
    schema = pa.schema(
        {"input_ids": pa.list_(pa.int16()), "cell_id": pa.string(), "length": pa.int64()}
    )
    return table.select(schema.names).cast(schema)


def test_a_dataset_in_several_shards_loads_in_order(tmp_path):
    table = rows_of(random_table(2500))
    size = 2 * sum(table["length"].to_pylist())
    folder = tmp_path / "out.dataset"
    write_dataset_folder(
        folder, table.to_batches(max_chunksize=300), table.schema, 2500, size, shard_bytes=size // 6
    )
    names = sorted(path.name for path in folder.glob("*.arrow"))
    assert names == [f"data-{shard:05d}-of-00007.arrow" for shard in range(7)]
    found = datasets.load_from_disk(folder)
    assert found["input_ids"][:] == table["input_ids"].to_pylist()
    assert found.select([2499])["cell_id"][0] == "cell-2499"


def test_fingerprints_differ_where_only_tokens_differ(tmp_path):
    fingerprints = set()
    for number, tokens in enumerate([[5, 6], [6, 5], [5, 6]]):
        table = rows_of(pa.table({"input_ids": [tokens], "cell_id": ["a"], "length": [2]}))
        folder = tmp_path / str(number)
        write_dataset_folder(folder, table.to_batches(), table.schema, 1, 4)
        fingerprints.add(datasets.load_from_disk(folder)._fingerprint)
    assert len(fingerprints) == 2


def test_what_is_written_names_no_type_that_older_releases_refuse(tmp_path):
    table = rows_of(random_table(20))
    folder = tmp_path / "out.dataset"
    write_dataset_folder(folder, table.to_batches(), table.schema, 20, 1)
    # They know no "List", which newer ones write both into the info and into the rows' schema.
    assert all(b'"List"' not in path.read_bytes() for path in folder.iterdir())
    with pa.ipc.open_stream(str(folder / "data-00000-of-00001.arrow")) as stream:
        assert not stream.schema.metadata


@pytest.mark.parametrize("ending", [".dataset", ".parquet"])
def test_without_the_library_parquet_is_left(tmp_path, monkeypatch, ending):
    table = random_table(30)
    pq.write_table(table, tmp_path / "in.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "in.dataset")
    monkeypatch.setitem(sys.modules, "datasets", None)
    source, store = tmp_path / f"in{ending}", tmp_path / "store"
    if ending == ".parquet":
        store_exchange.dataset_to_store(source, store, vocabulary())
        store_exchange.store_to_dataset(store, tmp_path / "out.parquet")
        assert pq.read_table(tmp_path / "out.parquet").to_pydict() == table.to_pydict()
        source, target = store, tmp_path / "out.dataset"
        with pytest.raises(InputError, match=r'pip install "geneformer_jax\[datasets\]"'):
            store_exchange.store_to_dataset(store, target)
        assert not target.exists()
    else:
        with pytest.raises(InputError, match=r'pip install "geneformer_jax\[datasets\]"') as caught:
            store_exchange.dataset_to_store(source, store, vocabulary())
        assert "\n" not in str(caught.value)
        assert not store.exists()


@pytest.mark.reference_data
@pytest.mark.parametrize(
    ("name", "folder", "token_type"),
    [("tokens_v1", "v1_gc30M", "int16"), ("tokens_v2", "v2_gc104M", "int64")],
)
def test_the_original_tokens_survive_the_way_through_a_store(
    data_dir, reference_dir, tmp_path, name, folder, token_type
):
    original = read_original_vocabulary(data_dir / "dictionaries" / folder)
    source = reference_dir / f"{name}.parquet"
    counts = store_exchange.dataset_to_store(source, tmp_path / "store", original)
    assert counts["columns_left_out"] == ["genes_beyond_cut", "values"]
    store_exchange.store_to_dataset(tmp_path / "store", tmp_path / "out.dataset")
    found = datasets.load_from_disk(tmp_path / "out.dataset")
    expected = pd.read_parquet(source)
    assert found["cell_id"][:] == expected["cell_id"].tolist()
    assert found["label"][:] == expected["label"].tolist()
    assert found["input_ids"][:] == [cell.tolist() for cell in expected["input_ids"]]
    assert found.features["input_ids"].feature.dtype == token_type


def test_what_is_left_out_is_counted(tmp_path):
    table = pa.table(
        {
            "input_ids": [[5, 6], [], [7]],
            "cell_id": ["a", "b", "c"],
            "tokens": [1, 2, 3],
            "counts": [[1.0], [], [2.0]],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    counts = store_exchange.dataset_to_store(
        tmp_path / "in.parquet", tmp_path / "store", vocabulary()
    )
    assert counts["columns_left_out"] == ["counts"]
    assert counts["dropped"] == {NO_GENE: 1}
    obs = CellStore.open(tmp_path / "store").obs
    assert obs.index.tolist() == ["a", "c"] and obs["tokens"].tolist() == [1, 3]


def test_second_version_cells_of_special_tokens_alone_are_left_out(tmp_path):
    table = pa.table({"input_ids": [[2, 3], [2, 9, 8, 3], [2, 3], []]})
    pq.write_table(table, tmp_path / "in.parquet")
    counts = store_exchange.dataset_to_store(
        tmp_path / "in.parquet", tmp_path / "store", vocabulary(V2_SPECIAL_TOKENS)
    )
    assert counts["dropped"] == {NO_GENE: 3}
    store = CellStore.open(tmp_path / "store")
    assert store.obs.index.tolist() == ["in:1"]
    assert store.read([0])[0].tolist() == [2, 9, 8, 3]


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path):
    pq.write_table(random_table(1500), tmp_path / "in.parquet")
    wrong = random_table(1500).to_pydict()
    wrong["input_ids"][1400][0] = 99
    pq.write_table(pa.table(wrong), tmp_path / "wrong.parquet")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=r'"cell-1400" \(row 1400\) has the token 99'):
        store_exchange.dataset_to_store(
            tmp_path / "wrong.parquet", tmp_path / "store", vocabulary()
        )
    with pytest.raises(InputError, match=r"tokens, more than the maximum length of 18; give"):
        store_exchange.dataset_to_store(
            tmp_path / "in.parquet", tmp_path / "store", vocabulary(), max_length=18
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    store_exchange.dataset_to_store(tmp_path / "in.parquet", tmp_path / "store", vocabulary())
    foreign = tmp_path / "foreign.dataset"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    for target in (foreign, tmp_path / "in.parquet"):
        with pytest.raises(InputError, match="nothing is overwritten"):
            store_exchange.store_to_dataset(tmp_path / "store", target)
    with pytest.raises(InputError, match="nothing is overwritten"):
        store_exchange.dataset_to_store(tmp_path / "in.parquet", tmp_path / "store", vocabulary())
    assert (foreign / "notes.txt").read_text() == "mine"


@pytest.fixture
def convert(monkeypatch, capsys):
    """Runs the command; returns (exit status, standard output, standard error)."""
    return lambda *flags: run_command("convert", list(flags), monkeypatch, capsys)


def test_the_command_converts_by_what_source_and_target_are(tmp_path, convert):
    vocabulary(V2_SPECIAL_TOKENS).save(tmp_path / "vocabulary")
    pq.write_table(random_table(50, V2_SPECIAL_TOKENS), tmp_path / "in.parquet")
    source, store = f"--source={tmp_path}/in.parquet", tmp_path / "store"
    status, said, error = convert(
        source, f"--target={store}", f"--vocabulary={tmp_path}/vocabulary"
    )
    assert status == 0, error
    assert "wrote 50 cells" in said
    status, _, error = convert(f"--source={store}", f"--target={tmp_path}/out.dataset")
    assert status == 0, error
    assert len(datasets.load_from_disk(tmp_path / "out.dataset")) == 50


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--source={tmp}/in.parquet", "--target={tmp}/x"], "--vocabulary must be given"),
        (
            ["--source={tmp}/vocabulary", "--target={tmp}/x"],
            "are pickles, which this package never",
        ),
        (["--source={tmp}", "--target={tmp}/x"], "is none of the original's dictionaries"),
    ],
)
def test_bad_input_is_a_one_line_error(tmp_path, convert, flags, words):
    vocabulary().save(tmp_path / "vocabulary")
    pq.write_table(random_table(5), tmp_path / "in.parquet")
    status, _, error = convert(*(flag.format(tmp=tmp_path) for flag in flags))
    assert status == 1 and words in error
    assert_one_line(error)


@pytest.mark.reference_data
def test_the_command_converts_the_original_dictionaries(data_dir, tmp_path, convert):
    source = data_dir / "dictionaries" / "v2_gc104M"
    status, _, error = convert(f"--source={source}", f"--target={tmp_path}/vocabulary")
    assert status == 0, error
    found = GeneVocabulary.load(tmp_path / "vocabulary")
    assert found.hash == read_original_vocabulary(source).hash
    provenance = json.loads((tmp_path / "vocabulary" / "provenance.json").read_text())
    assert provenance["counts"]["genes"] == 20_271
