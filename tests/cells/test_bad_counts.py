"""Bad count files end in one line that names the file, the value, the rule and the remedy."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numcodecs
import numpy as np
import pytest
import scipy.io
import zarr
from scipy import sparse

from geneformer_jax.cells.counts import hdf5_probe, transpose
from geneformer_jax.cells.counts.options import CountOptions, ReadLimits
from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.common.errors import InputError
from tests.helpers.count_files import WRITERS, example_cells, with_matrix

CELL, GENE = 31, 12
REMEDIES = ("copy", "write", "give", "name", "choose", "correct", "check", "free", "use")


def refusal(read):
    """The message of the InputError that `read` ends in: one line with a remedy."""
    with pytest.raises(InputError) as error:
        read()
    message = str(error.value)
    assert "\n" not in message
    assert any(remedy in message for remedy in REMEDIES), message
    return message


def read(path, **options):
    return list(open_counts(path, CountOptions(**options)).batches())


def with_value(value, layout="csr"):
    """Example cells as floats, of which one stored count is `value`."""
    adata = example_cells(dtype=np.float64)
    dense = adata.X.toarray()
    dense[CELL, GENE] = value
    adata.X = sparse.csr_matrix(dense)
    adata = with_matrix(adata, layout)
    adata.obs["n_counts"] += 1e12
    return adata


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-1.0, "-1 is negative"),
        (-0.5, "-0.5 is negative"),
        (0.25, "0.25 is not a whole number"),
        (np.nan, "nan is not a number"),
        (np.inf, "inf is infinite"),
        (-np.inf, "-inf is infinite"),
        (3e9, "3e+09 is too large"),
    ],
)
def test_a_value_that_is_no_raw_count_is_named_with_its_place(layout, value, words, tmp_path):
    adata = with_value(value, layout)
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    gene = adata.var["ensembl_id"].iloc[GENE]
    for source, name in [(open_counts(path), str(path)), (AnnDataSource(adata), "AnnData")]:
        message = refusal(lambda source=source: list(source.batches(8)))
        for part in (name, f'cell "CELL{CELL:04d}-1"', f'gene "{gene}"', words):
            assert part in message


@pytest.mark.parametrize("kind", ["h5ad csr", "zarr 3 csr", "loom", "10x mtx version 2"])
def test_negative_whole_numbers(kind, tmp_path):
    adata = example_cells()
    adata.X[CELL, GENE] = -3
    assert "value -3 is negative" in refusal(lambda: read(WRITERS[kind](adata, tmp_path)))


def looks(transform):
    adata = example_cells(n_cells=20, n_genes=200, dtype=np.float64)
    adata.X = sparse.csr_matrix(transform(adata.X.toarray()))
    del adata.obs["n_counts"]
    return refusal(lambda: list(AnnDataSource(adata).batches()))


def scaled(counts, total=1e4):
    return counts / np.maximum(counts.sum(1, keepdims=True), 1) * total


def test_what_was_done_to_the_counts_is_guessed():
    assert "looks log-transformed:" in looks(np.log1p)
    assert "looks log-transformed:" in looks(lambda counts: np.log1p(scaled(counts)))
    assert "looks log-transformed:" in looks(lambda c: np.log1p(scaled(c)).astype(np.float32))
    assert "looks normalised" in looks(scaled)
    assert "looks normalised" in looks(lambda counts: scaled(counts, 1e6).astype(np.float32))
    noise = np.random.default_rng(0).uniform(0.5, 1.5, (20, 200))
    assert "looks corrected" in looks(lambda counts: counts * noise * 50)


def test_other_matrices_are_the_remedy(tmp_path):
    adata = example_cells(dtype=np.float32)
    adata.layers["umi"] = adata.X.copy()
    adata.raw = adata.copy()
    adata.X = adata.X.log1p()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    main = CountOptions(counts_layer="X")
    for source in (open_counts(tmp_path / "cells.h5ad", main), AnnDataSource(adata, main)):
        message = refusal(lambda source=source: list(source.batches()))
        assert 'by `counts_layer` (there is also: "umi", "raw")' in message
    message = refusal(
        lambda: open_counts(tmp_path / "cells.h5ad", CountOptions(counts_layer="umo"))
    )
    assert 'no layer "umo" (did you mean "umi"?)' in message
    assert 'did you mean "umi"' in refusal(
        lambda: AnnDataSource(adata, CountOptions(counts_layer="umo"))
    )


@pytest.mark.parametrize(
    "kind", ["loom", "10x h5 version 3", "10x h5 version 2", "10x mtx version 2"]
)
def test_no_such_layer(kind, tmp_path):
    path = WRITERS[kind](example_cells(), tmp_path)
    with pytest.raises(InputError, match=r"has no (layer|genome)"):
        open_counts(path, CountOptions(counts_layer="umi"))


@pytest.mark.parametrize("kind", WRITERS)
def test_no_such_columns(kind, tmp_path):
    path = WRITERS[kind](example_cells(), tmp_path)
    with pytest.raises(InputError, match='no column "ensembl"'):
        open_counts(path, CountOptions(gene_column="ensembl"))
    source = open_counts(path)
    with pytest.raises(InputError, match='obs has no column "cell_typ"') as error:
        source.obs(["cell_typ"])
    message = str(error.value)
    assert ("did you mean" in message) == ("10x" not in kind)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "less than the"), (-1.0, "at least 0"), (np.nan, "at least 0"), (3.0, "less than the")],
)
def test_a_total_that_cannot_be_is_named(value, words, tmp_path):
    adata = example_cells()
    adata.obs.loc[f"CELL{CELL:04d}-1", "n_counts"] = value
    path = WRITERS["h5ad csr"](adata, tmp_path)
    for open_it in (lambda: open_counts(path), lambda: AnnDataSource(adata)):
        message = refusal(lambda open_it=open_it: list(open_it().batches(10)))
        assert words in message
        assert f'cell "CELL{CELL:04d}-1"' in message


def test_totals_of_text_are_refused(tmp_path):
    adata = example_cells()
    adata.obs["n_counts"] = ["many"] * adata.n_obs
    assert "not made of numbers" in refusal(lambda: AnnDataSource(adata))
    path = WRITERS["h5ad csr"](adata, tmp_path)
    assert "not made of numbers" in refusal(lambda: open_counts(path))


def test_totals_kept_in_single_precision_are_accepted():
    adata = anndata.AnnData(sparse.csr_matrix(np.array([[16777216, 1], [0, 5]])))
    adata.obs["n_counts"] = np.array([16777217, 5], np.float32)
    (batch,) = AnnDataSource(adata).batches()
    assert batch.totals.tolist() == [16777216.0, 5.0]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices(shape, tmp_path):
    adata = anndata.AnnData(sparse.csr_matrix(shape, dtype=np.int32))
    assert "is empty" in refusal(lambda: AnnDataSource(adata))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert "is empty" in refusal(lambda: open_counts(tmp_path / "cells.h5ad"))


def test_a_matrix_of_zeros(tmp_path):
    adata = anndata.AnnData(sparse.csr_matrix((4, 5), dtype=np.int32))
    assert "no cell has a count" in refusal(lambda: list(AnnDataSource(adata).batches()))


def test_an_empty_cell_passes_with_a_total_of_zero():
    adata = example_cells()
    (batch,) = AnnDataSource(adata).batches()
    assert batch.totals[57 // 2] == 0
    assert batch.counts[57 // 2].nnz == 0


@pytest.mark.parametrize("suffix", [".h5ad", ".loom", ".h5"])
def test_a_file_that_is_something_else(suffix, tmp_path):
    path = tmp_path / f"cells{suffix}"
    path.write_text("cell,gene\n1,2\n")
    assert f"{path} cannot be read as" in refusal(lambda: open_counts(path))
    path.write_bytes(b"")
    assert f"{path} cannot be read as" in refusal(lambda: open_counts(path))
    path.unlink()
    with h5py.File(path, "w") as root:
        root["something"] = [1, 2]
    assert str(path) in refusal(lambda: open_counts(path))


def test_a_zarr_store_whose_description_is_of_no_group(tmp_path):
    path = WRITERS["zarr 3 csr"](example_cells(), tmp_path)
    described = json.loads((path / "zarr.json").read_text())
    (path / "zarr.json").write_text(json.dumps(described | {"node_type": "folder"}))
    assert f"{path} cannot be read as" in refusal(lambda: open_counts(path))


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if not kind.startswith("zarr")])
@pytest.mark.parametrize("fraction", [0.2, 0.7, 0.99])
def test_truncated_files(kind, fraction, tmp_path):
    path = WRITERS[kind](example_cells(), tmp_path)
    file = path if path.is_file() else next(f for f in path.iterdir() if "matrix.mtx" in f.name)
    data = file.read_bytes()
    file.write_bytes(data[: int(fraction * len(data))])
    assert str(path) in refusal(lambda: read(path))


def test_features_of_which_none_is_a_gene(tmp_path):
    path = WRITERS["10x h5 version 3"](example_cells(), tmp_path)
    with h5py.File(path, "r+") as root:
        types = root["matrix/features/feature_type"]
        types[:] = np.full(types.shape, b"Peaks", types.dtype)
    assert "none of its features is a gene (they are 83 Peaks)" in refusal(
        lambda: open_counts(path)
    )


@pytest.mark.parametrize("layout", ["csr", "csc"])
@pytest.mark.parametrize(
    "damage",
    ["index too large", "index negative", "pointers fall", "pointers short", "data short", "start"],
)
def test_sparse_arrays_that_are_no_matrix(layout, damage, tmp_path):
    path = WRITERS[f"h5ad {layout}"](example_cells(), tmp_path)
    with h5py.File(path, "r+") as root:
        group = root["X"]
        arrays = {name: group[name][:] for name in ("data", "indices", "indptr")}
        if damage.startswith("index"):
            arrays["indices"][40] = 83 if damage == "index too large" else -1
        elif damage == "pointers fall":
            arrays["indptr"][3] = arrays["indptr"][-1]
        elif damage == "pointers short":
            arrays["indptr"] = arrays["indptr"][:-1]
        elif damage == "data short":
            arrays["data"] = arrays["data"][:-1]
        else:
            arrays["indptr"][0] = 1
        for name, values in arrays.items():
            del group[name]
            group[name] = values
    assert f"{path} (X): ind" in refusal(lambda: read(path))


def test_names_of_genes_that_are_no_texts(tmp_path):
    path = WRITERS["h5ad csr"](example_cells(), tmp_path)
    with h5py.File(path, "r+") as root:
        ids = root["var/ensembl_id"]
        # With pandas 3 texts are a group: values, and which of them are missing.
        ids = ids["values"] if isinstance(ids, h5py.Group) else ids
        name, kept, attributes = ids.name, ids[:], dict(ids.attrs)
        for wrong in (kept[:, None], kept[:50], np.array([b"ENSG\xff\xfe", *kept[1:]])):
            del root[name]
            root.create_dataset(name, data=wrong, dtype=h5py.string_dtype())
            root[name].attrs.update(attributes)
            root.flush()
            message = refusal(lambda: read(path))
            assert ("83 genes" if len(wrong) != 83 or wrong.ndim > 1 else "utf-8") in message


def test_names_with_ends_of_lines_stay_in_one_line(tmp_path):
    path = WRITERS["h5ad csr"](example_cells(), tmp_path)
    with h5py.File(path, "r+") as root:
        root["X"].attrs["encoding-type"] = "a\nb\x1b[2J"
    assert r'encoding "a\nb\x1b[2J" is not known' in refusal(lambda: read(path))


@pytest.mark.parametrize("name", ["obs/_index", "obs/cell_type/categories"])
def test_shapes_that_ask_for_more_than_is_there(name, tmp_path):
    """Of 4 billion texts zarr would make as many empty ones, in 64 GiB."""
    path = WRITERS["zarr 2 csr"](example_cells(), tmp_path)
    place = next(each for each in (path / name).rglob(".zarray") if each.parent.name != "mask")
    place.write_text(json.dumps(json.loads(place.read_text()) | {"shape": [1 << 32]}))
    assert "are missing" in refusal(lambda: open_counts(path).obs(["cell_type"]))


def test_a_matrix_that_does_not_fit_its_tables(tmp_path):
    path = WRITERS["10x mtx version 2"](example_cells(), tmp_path)
    (path / "barcodes.tsv").write_text("A\nB\n")
    message = refusal(lambda: open_counts(path))
    assert "57 cells x 83 genes, but 2 cells and 83 genes are named" in message


def test_zarr_chunks_that_are_missing_are_not_read_as_zeros(tmp_path):
    path = WRITERS["zarr 3 csr small chunks"](example_cells(), tmp_path)
    for part in ("data", "indices", "indptr"):
        chunk = path / "X" / part / "c" / "0"
        kept = chunk.read_bytes()
        chunk.unlink()
        assert f"chunks of {part} are missing" in refusal(lambda: open_counts(path))
        chunk.write_bytes(kept)
    assert len(read(path)) == 1


@pytest.mark.parametrize("kind", ["zarr 2 csr", "zarr 3 csr"])
def test_zarr_chunks_of_blosc_that_are_cut_are_not_read(kind, tmp_path):
    """Of those that lack a few bytes Blosc makes numbers, whatever lies behind them in memory."""
    path = WRITERS[kind](example_cells(), tmp_path)
    root = zarr.open_group(path)
    for part in ("data", "indices", "indptr"):
        values = root[f"X/{part}"][...]
        if kind == "zarr 3 csr":
            blosc = {"compressors": zarr.codecs.BloscCodec(), "chunks": values.shape}
            root["X"].create_array(part, data=values, overwrite=True, **blosc)
        chunk = path / "X" / part / ("0" if kind == "zarr 2 csr" else "c/0")
        kept = chunk.read_bytes()
        for bytes_left in (len(kept) - 1, 15):
            chunk.write_bytes(kept[:bytes_left])
            assert f"{part}/{chunk.relative_to(path / 'X' / part)} is cut short" in refusal(
                lambda: read(path)
            )
        chunk.write_bytes(kept)
    (batch,) = read(path)
    assert (batch.counts != example_cells().X).nnz == 0


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["zarr 2 csr", "zarr 3 csr"])
def test_zarr_texts_that_are_fewer_than_stated(kind, packed, tmp_path):
    """Zarr would first make room for 4 billion, in 32 GiB."""
    path = WRITERS[kind](example_cells(), tmp_path)
    place = path / "obs/cell_type/categories"
    described = next(each for each in (place / "zarr.json", place / ".zarray") if each.exists())
    content = json.loads(described.read_text())
    chunk = b"\xff" * 20
    if packed:
        chunk = (numcodecs.Zstd() if kind == "zarr 3 csr" else numcodecs.Blosc()).encode(chunk)
    elif kind == "zarr 3 csr":
        content["codecs"] = [each for each in content["codecs"] if each["name"] == "vlen-utf8"]
    else:
        content["compressor"] = None
    described.write_text(json.dumps(content))
    name = "c/0" if kind == "zarr 3 csr" else "0"
    (place / name).write_bytes(chunk)
    source = open_counts(path)
    words = f"categories/{name} is damaged: it has no room for the 4,294,967,295 texts"
    assert words in refusal(source.obs)


class _Mischief:
    def __reduce__(self):
        return (Path.touch, (Path("mischief"),))


@pytest.mark.parametrize("kind", ["<i8", "|O"])
def test_zarr_elements_stored_by_pickle_are_not_read(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = WRITERS["zarr 2 csr"](example_cells(), tmp_path)
    array = path / "obs" / "filter_pass"
    stored = json.loads((array / ".zarray").read_text())
    stored |= {"dtype": kind, "filters": [{"id": "pickle", "protocol": 5}], "compressor": None}
    (array / ".zarray").write_text(json.dumps(stored))
    (array / "0").write_bytes(pickle.dumps(_Mischief()))
    for consolidated in path.rglob(".zmetadata"):
        consolidated.unlink()
    message = refusal(lambda: open_counts(path).obs(["filter_pass"]))
    assert "pickle" in message
    assert not Path("mischief").exists()


def test_an_mtx_file_that_ends_early(tmp_path):
    path = WRITERS["10x mtx version 2"](example_cells(), tmp_path)
    lines = (path / "matrix.mtx").read_text().splitlines()
    (path / "matrix.mtx").write_text("\n".join(lines[:-2]) + "\n")
    assert "counts, but it has" in refusal(lambda: read(path))
    (path / "matrix.mtx").write_text("\n".join([*lines[:-1], lines[-1] + " 7"]) + "\n")
    refusal(lambda: read(path))
    (path / "barcodes.tsv").unlink()
    assert "holds no barcodes.tsv" in refusal(lambda: open_counts(path))


@pytest.mark.parametrize("field", ["pattern", "complex"])
def test_an_mtx_file_without_counts(field, tmp_path):
    adata = example_cells()
    path = WRITERS["10x mtx version 2"](adata, tmp_path)
    scipy.io.mmwrite(path / "matrix.mtx", adata.X.T.tocoo(), field=field)
    assert f'"{field}" values' in refusal(lambda: open_counts(path))


def test_a_full_scratch_disk_is_named(tmp_path, monkeypatch):
    path = WRITERS["h5ad csc"](example_cells(), tmp_path)
    limits = ReadLimits(scratch_bytes=256)

    def full(self, _):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transpose.tempfile.SpooledTemporaryFile, "write", full)
    assert "TMPDIR" in refusal(lambda: read(path, limits=limits))
    monkeypatch.undo()
    monkeypatch.setattr(transpose.shutil, "disk_usage", lambda _: _Disk)
    assert "TMPDIR" in refusal(lambda: read(path, limits=limits))


class _Disk:
    free = 100


def test_anndata_whose_counts_lie_elsewhere(monkeypatch):
    elsewhere = example_cells().X.tocoo()
    monkeypatch.setattr(AnnDataSource, "_values", lambda *_: elsewhere)
    assert "to_memory()" in refusal(lambda: AnnDataSource(example_cells()))


def test_a_shape_of_a_petabyte_without_values(tmp_path):
    path = WRITERS["h5ad csr"](example_cells(), tmp_path)
    with h5py.File(path, "r+") as root:
        group, cells = root["X"], 1 << 50
        del group["indptr"]
        group.create_dataset("indptr", (cells + 1,), "i8", chunks=(1 << 20,))
        group.attrs["shape"] = [cells, group.attrs["shape"][1]]
    assert "chunks of indptr are missing" in refusal(lambda: open_counts(path))


def test_an_obs_column_of_records(tmp_path):
    path = WRITERS["h5ad csr"](example_cells(), tmp_path)
    with h5py.File(path, "r+") as root:
        rows = len(root["obs/filter_pass"])
        both = root["obs"].create_dataset("both", data=np.zeros(rows, [("a", "f4"), ("b", "i4")]))
        both.attrs.update({"encoding-type": "rec-array", "encoding-version": "0.2.0"})
    assert "both holds records" in refusal(lambda: open_counts(path).obs(["both"]))


ENDLESS = """
class Endless:
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def visititems_links(self, _):
        while True: pass
"""


@pytest.mark.parametrize(
    "deed",
    ["os.abort()", "bytearray(b'x') * (5 << 28)", "return Endless()"],
)
def test_files_on_which_the_library_never_ends_or_dies(deed, tmp_path, monkeypatch):
    """The child that tries a file meets an h5py that does what HDF5 does on some damaged files."""
    path = WRITERS["h5ad dense"](example_cells(), tmp_path)
    library = tmp_path / "library"
    library.mkdir()
    types = "\n".join(f"class {name}: pass" for name in ("Group", "Dataset", "AttributeManager"))
    (library / "h5py.py").write_text(f"import os\n{types}{ENDLESS}\ndef File(*_):\n    {deed}\n")
    stop_probing()
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", str(library))
        limits = ReadLimits(probe_seconds=1)
        assert "never ends" in refusal(lambda: open_counts(path, CountOptions(limits=limits)))
    stop_probing()
    whole = WRITERS["h5ad csr"](example_cells(), tmp_path)
    assert len(read(whole)) == 1


def test_machines_that_limit_processor_time_read_files_too(tmp_path):
    path = WRITERS["h5ad csr"](example_cells(), tmp_path)
    limited = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_CPU, (900, 900)); "
        "os.execv(sys.executable, [sys.executable, '-P', sys.argv[1]])"
    )
    child = subprocess.run(
        [sys.executable, "-c", limited, hdf5_probe.__file__],
        input=json.dumps([str(path), 10]) + "\n",
        capture_output=True,
        text=True,
    )
    assert child.stdout.split() == ["ready", "done"]


def stop_probing() -> None:
    """Ends the child, so that the next file starts another."""
    hdf5_probe._child.cache_clear()
