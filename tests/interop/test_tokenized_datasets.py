import itertools
import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import geneformer_jax as gf
from geneformer_jax.cells.tokenization.vocabulary import (
    V1_SPECIAL_TOKENS,
    V2_SPECIAL_TOKENS,
    GeneVocabulary,
)
from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.tokenized_datasets import (
    TokenizedDataset,
    is_tokenized_dataset,
    read_tokenized,
)
from tests.helpers.toy import toy_model, toy_vocabulary

GENES = 60
V1_CELLS = [[5, 6, 7], [8, 9]]
LISTS = {
    "list of int16": pa.list_(pa.int16()),
    "list of int64": pa.list_(pa.int64()),
    "list of uint16": pa.list_(pa.uint16()),
    "large list of int32": pa.large_list(pa.int32()),
}


def vocabulary(special_tokens=V1_SPECIAL_TOKENS, genes=GENES) -> GeneVocabulary:
    return toy_vocabulary(special_tokens, genes)


def random_cells(count: int, special_tokens=V1_SPECIAL_TOKENS, seed=0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    first = len(special_tokens)
    cells = []
    for length in rng.integers(1, 30, count):
        genes = (first + rng.permutation(GENES)[:length]).tolist()
        cells.append([2, *genes, 3] if special_tokens == V2_SPECIAL_TOKENS else genes)
    return cells


def table_of(cells, list_type=LISTS["list of int64"], **columns) -> pa.Table:
    lengths = pa.array([len(cell) for cell in cells], pa.int64())
    return pa.table({"input_ids": pa.array(cells, list_type), **columns, "length": lengths})


def read_all(dataset: TokenizedDataset, **options) -> list[list[int]]:
    cells = []
    for encodings, _, _ in dataset.batches(**options):
        tokens, offsets = encodings.tokens, encodings.offsets
        assert tokens.dtype == np.uint16 and offsets[0] == 0
        cells += [tokens[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    return cells


def read_obs(dataset: TokenizedDataset) -> pd.DataFrame:
    return pd.concat([obs.set_index(ids) for _, ids, obs in dataset.batches()])


def save_with_datasets(table: pa.Table, folder, **options):
    datasets.Dataset(table).save_to_disk(folder, **options)
    return folder


@pytest.mark.parametrize("list_type", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_reads_what_the_datasets_package_saved(tmp_path, list_type, shards):
    cells = random_cells(2500)
    labels = [f"type {i % 3}" for i in range(2500)]
    table = table_of(cells, list_type, cell_type=pa.array(labels))
    folder = save_with_datasets(table, tmp_path / "pbmc.dataset", num_shards=shards)
    dataset = TokenizedDataset(folder, vocabulary())
    assert dataset.n_cells == 2500
    assert read_all(dataset) == cells
    assert read_obs(dataset)["cell_type"].tolist() == labels
    assert read_obs(dataset).index[17] == "pbmc:17"
    assert dataset.left_out == []


@pytest.mark.parametrize("row_group_size", [7, 5000])
def test_reads_parquet_in_batches_of_any_size(tmp_path, row_group_size):
    cells = random_cells(1234)
    path = tmp_path / "cells.parquet"
    pq.write_table(table_of(cells), path, row_group_size=row_group_size)
    dataset = TokenizedDataset(path, vocabulary())
    assert read_all(dataset) == cells
    assert read_all(dataset, cells_per_batch=100) == cells


def test_one_huge_record_batch_is_handed_out_in_small_ones(tmp_path):
    cells = random_cells(5000)
    folder = tmp_path / "big.dataset"
    folder.mkdir()
    write_stream(folder / "data-00000-of-00001.arrow", table_of(cells))
    write_state(folder, ["data-00000-of-00001.arrow"])
    dataset = TokenizedDataset(folder, vocabulary())
    sizes = [len(ids) for _, ids, _ in dataset.batches(cells_per_batch=300)]
    assert max(sizes) == 300 and sum(sizes) == 5000
    assert read_all(dataset) == cells


def write_stream(path, table):
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table, max_chunksize=len(table) or 1)


def write_state(folder, names, **more):
    """Writes what older releases of the library wrote beside the rows."""
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "0123456789abcdef",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state | more))
    if not (folder / "dataset_info.json").exists():
        (folder / "dataset_info.json").write_text("{}")


def test_plain_columns_are_carried_and_others_are_named(tmp_path):
    cells = random_cells(4, V2_SPECIAL_TOKENS)
    table = table_of(
        cells,
        cell_id=pa.array(["a", "b", "c", "d"]),
        tissue=pa.array(["x", None, "x", "y"]).dictionary_encode(),
        age=pa.array([1, None, 3, 4], pa.int16()),
        donor=pa.array([1, 2, 3, 4], pa.int8()),
        score=pa.array([0.5, 1.5, None, 2.0], pa.float32()),
        good=pa.array([True, False, True, True]),
        counts=pa.array([[1.0]] * 4),
        raw=pa.array([b"1"] * 4),
    )
    path = tmp_path / "cells.parquet"
    pq.write_table(table, path)
    dataset = TokenizedDataset(path, vocabulary(V2_SPECIAL_TOKENS))
    assert read_all(dataset) == cells
    assert dataset.left_out == ["counts", "raw"]
    kinds = {"tissue": "text", "age": "float", "donor": "int", "score": "float", "good": "bool"}
    assert dataset.obs_kinds == kinds
    obs = read_obs(dataset)
    assert obs.index.tolist() == ["a", "b", "c", "d"]
    assert obs.columns.tolist() == ["tissue", "age", "donor", "score", "good"]
    assert obs["tissue"].isna().tolist() == [False, True, False, False]
    assert obs["donor"].tolist() == [1, 2, 3, 4]
    assert obs["good"].tolist() == [True, False, True, True]
    np.testing.assert_array_equal(obs["age"], [1, np.nan, 3, 4])


def test_lengths_of_any_whole_number_type_are_read(tmp_path):
    for kind in (pa.uint16(), pa.uint64(), pa.int8()):
        table = table_of(V1_CELLS).set_column(1, "length", pa.array([3, 2], kind))
        pq.write_table(table, tmp_path / "cells.parquet")
        assert read_all(TokenizedDataset(tmp_path / "cells.parquet", vocabulary())) == V1_CELLS


def test_cells_without_tokens_are_read_as_such(tmp_path):
    cells = [[5, 6], [], [7]]
    path = tmp_path / "cells.parquet"
    pq.write_table(table_of(cells), path)
    assert read_all(TokenizedDataset(path, vocabulary())) == cells


@pytest.mark.reference_data
def test_the_sample_of_genecorpus_is_read_as_pandas_reads_it(data_dir):
    path = data_dir / "genecorpus" / "genecorpus_500_samples.parquet"
    dataset = TokenizedDataset(path, vocabulary(genes=25_424))
    expected = pd.read_parquet(path)["input_ids"]
    assert read_all(dataset) == [cell.tolist() for cell in expected]


@pytest.mark.reference_data
def test_the_original_tokens_of_both_versions_are_accepted(reference_dir):
    for name, special_tokens, genes in (
        ("tokens_v1", V1_SPECIAL_TOKENS, 25_424),
        ("tokens_v2", V2_SPECIAL_TOKENS, 20_271),
    ):
        path = reference_dir / f"{name}.parquet"
        dataset = TokenizedDataset(path, vocabulary(special_tokens, genes))
        assert dataset.left_out == ["genes_beyond_cut", "values"]
        expected = pd.read_parquet(path).set_index("cell_id")
        assert read_obs(dataset).index.tolist() == expected.index.tolist()
        assert read_all(dataset) == [cell.tolist() for cell in expected["input_ids"]]
    with pytest.raises(InputError, match=r"as <cls> and <eos> of a V2 vocabulary do"):
        read_all(TokenizedDataset(path, vocabulary(genes=25_424)))
    path = reference_dir / "tokens_v1.parquet"
    with pytest.raises(InputError, match=r"token \d+, but the vocabulary ends|is not <cls>"):
        read_all(TokenizedDataset(path, vocabulary(V2_SPECIAL_TOKENS, 20_271)))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pa.table({"input_id": [[5]]}), r'no column "input_ids" \(did you mean "input_id"'),
        (pa.table({"input_ids": ["5 6"]}), "keeps input_ids as string"),
        (pa.table({"input_ids": [[0.5]]}), "keeps input_ids as list"),
        (table_of([[5, 6], [7, 99]]), 'cell "cells:1" .* token 99, but the vocabulary ends at 61'),
        (table_of([[5, 6], [-1]]), 'cell "cells:1" .* token -1'),
        (table_of([[5, 6, 0, 0]]), "holds <pad>"),
        (table_of([[5, 1]]), "holds <mask>"),
        (pa.table({"input_ids": V1_CELLS, "length": [3, 3]}), '"cells:1" .* length 3 but 2'),
        (pa.table({"input_ids": V1_CELLS, "length": [3, None]}), "length -1 but 2"),
        (pa.table({"input_ids": V1_CELLS, "length": ["3", "2"]}), "keeps length as string"),
        (pa.table({"input_ids": [[5], None]}), "misses tokens"),
        (pa.table({"input_ids": [[5, None]]}), "misses tokens"),
        (table_of([]), "holds no cells"),
        (table_of(V1_CELLS, cell_id=pa.array(["a", "a"])), 'cell_id "a" of row 1 occurs before'),
        (table_of(V1_CELLS, cell_id=pa.array(["a", None])), "cell_id of row 1 is missing"),
        (pa.table([[[5]], [1], [2]], ["input_ids", "x", "x"]), 'two columns "x"'),
    ],
)
def test_what_does_not_fit_is_a_one_line_error(tmp_path, table, words):
    path = tmp_path / "cells.parquet"
    pq.write_table(table, path)
    with pytest.raises(InputError, match=words) as caught:
        read_all(TokenizedDataset(path, vocabulary()))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("cell", [[4, 5, 6], [2, 4, 5], [4, 5, 3], [2, 4, 2, 3], [3, 4, 2], [2]])
def test_second_version_cells_begin_with_cls_and_end_with_eos(tmp_path, cell):
    path = tmp_path / "cells.parquet"
    pq.write_table(table_of([[2, 4, 5, 3], cell]), path)
    with pytest.raises(InputError, match=r'"cells:1" .*is not <cls>, genes, <eos>'):
        read_all(TokenizedDataset(path, vocabulary(V2_SPECIAL_TOKENS)))


def test_folders_that_are_no_dataset_are_distinguished(tmp_path):
    folder = tmp_path / "a.dataset"
    table = table_of(V1_CELLS)
    splits = datasets.DatasetDict({name: datasets.Dataset(table) for name in ("train", "test")})
    splits.save_to_disk(folder)
    assert is_tokenized_dataset(folder) and not is_tokenized_dataset(tmp_path)
    with pytest.raises(InputError, match="splits test, train; name one"):
        TokenizedDataset(folder, vocabulary())
    with pytest.raises(InputError, match=r"no state\.json"):
        TokenizedDataset(tmp_path / "a.dataset" / "..", vocabulary())
    state = folder / "train" / "state.json"
    for content in ("{", "[]", '{"_data_files": [3]}'):
        state.write_text(content)
        with pytest.raises(InputError, match=r"is damaged.*get the whole dataset"):
            TokenizedDataset(folder / "train", vocabulary())
    write_state(folder / "train", [])
    with pytest.raises(InputError, match="get the whole dataset"):
        TokenizedDataset(folder / "train", vocabulary())
    write_state(folder / "train", ["gone.arrow"])
    with pytest.raises(InputError, match=r"gone\.arrow.*get the whole dataset"):
        TokenizedDataset(folder / "train", vocabulary())
    rows = next((folder / "train").glob("*.arrow")).name
    write_state(folder / "train", [rows], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(InputError, match="no rows of its own"):
        TokenizedDataset(folder / "train", vocabulary())


def test_shards_with_other_columns_are_refused(tmp_path):
    write_stream(tmp_path / "0.arrow", table_of(V1_CELLS))
    write_stream(tmp_path / "1.arrow", table_of(V1_CELLS, LISTS["list of int16"]))
    write_state(tmp_path, ["0.arrow", "1.arrow"])
    with pytest.raises(InputError, match="get the whole dataset"):
        TokenizedDataset(tmp_path, vocabulary())


@pytest.mark.parametrize("kind", ["dataset", "parquet"])
def test_a_file_cut_anywhere_is_never_read_as_a_shorter_one(tmp_path, kind):
    cells = random_cells(300)
    if kind == "dataset":
        folder = tmp_path / "cells.dataset"
        save_with_datasets(table_of(cells), folder)
        (path,) = folder.glob("*.arrow")
    else:
        folder = path = tmp_path / "cells.parquet"
        pq.write_table(table_of(cells), path)
    whole = path.read_bytes()
    for kept in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError) as caught:
            read_all(TokenizedDataset(folder, vocabulary()))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["dataset", "parquet"])
def test_changed_bytes_give_one_line_or_valid_tokens(tmp_path, kind):
    cells = random_cells(200)
    labels = pa.array([f"type {i % 3}" for i in range(200)])
    if kind == "dataset":
        folder = tmp_path / "cells.dataset"
        save_with_datasets(table_of(cells, cell_type=labels), folder)
        (path,) = folder.glob("*.arrow")
    else:
        folder = path = tmp_path / "cells.parquet"
        pq.write_table(table_of(cells, cell_type=labels), path)
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            content[position] = rng.integers(256)
        path.write_bytes(content)
        try:
            found = read_all(TokenizedDataset(folder, vocabulary()))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert all(2 <= token < 62 for cell in found for token in cell)
    assert refused > 30


KINDS = ["T cell", "B/plasma", "NK, bright"]


@pytest.fixture(params=["folder", "parquet"])
def classed(request, tmp_path):
    """A dataset with a column of numbered classes, as `datasets` writes it: (path, numbers)."""
    numbers = [2, 0, -1, 1, None, 2]
    columns = {"input_ids": [[5, 6, 7]] * 5 + [[]], "kind": numbers, "n": range(6)}
    features = datasets.Features(
        {
            "input_ids": datasets.Sequence(datasets.Value("int64")),
            "kind": datasets.ClassLabel(names=KINDS),
            "n": datasets.Value("int64"),
        }
    )
    dataset = datasets.Dataset.from_dict(columns, features=features)
    if request.param == "folder":
        dataset.save_to_disk(tmp_path / "in.dataset")
        return tmp_path / "in.dataset", numbers
    dataset.to_parquet(tmp_path / "in.parquet")
    return tmp_path / "in.parquet", numbers


def test_classes_keep_their_names(classed):
    path, numbers = classed
    dataset = TokenizedDataset(path, vocabulary())
    assert dataset.obs_kinds == {"kind": "text", "n": "int"}
    names = [KINDS[number] if number not in (None, -1) else None for number in numbers]
    found = read_obs(dataset)["kind"]
    assert [None if pd.isna(name) else name for name in found] == names


def test_the_cells_of_a_dataset_are_taken_where_cells_are_taken(classed, tmp_path):
    path, _ = classed
    model = toy_model(genes=GENES)
    embedded = gf.embed_cells(model, path)
    # The last cell has no gene.
    assert embedded.obs["kind"].tolist()[:2] == ["NK, bright", "T cell"]
    assert embedded.obs["n"].tolist() == [0, 1, 2, 3, 4]
    assert embedded.uns["geneformer"]["left_out"] == {"no gene of the vocabulary": 1}
    cells = read_tokenized(path, model.vocabulary)
    np.testing.assert_array_equal(
        embedded.obsm["X_geneformer"], gf.embed_cells(model, cells).obsm["X_geneformer"]
    )
    with pytest.raises(InputError, match="`gene_column` chooses among counts"):
        gf.embed_cells(model, path, gene_column="id")
    if path.is_dir():
        with pytest.raises(InputError, match="convert --source="):
            gf.CellStore.open(path)


def test_a_class_without_a_name_is_refused(tmp_path):
    features = datasets.Features(
        {"input_ids": datasets.Sequence(datasets.Value("int64")),
         "kind": datasets.ClassLabel(names=KINDS)}
    )  # fmt: skip
    table = datasets.Dataset.from_dict({"input_ids": [[5]], "kind": [2]}, features=features)
    path = tmp_path / "in.parquet"
    table.to_parquet(path)
    written = pq.read_table(path)
    written = written.set_column(1, written.schema.field(1), pa.array([3], pa.int64()))
    pq.write_table(written, path)
    with pytest.raises(InputError, match='column "kind" holds class 3, but has 3 class names'):
        read_obs(TokenizedDataset(path, vocabulary()))
