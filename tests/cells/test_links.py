"""Files that would have others read, or unpack to more than any memory holds, are refused."""

import gzip
import json
import os
import shutil
import zipfile

import h5py
import numpy as np
import pytest

from geneformer_jax.cells.formats import containers
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.weights import torch_bin
from geneformer_jax.model.pretrained import load_model, save_model
from tests.helpers.count_files import WRITERS, example_cells
from tests.helpers.toy import make_store, toy_cells, toy_model, toy_vocabulary


def refusal(path):
    with pytest.raises(InputError) as error:
        open_counts(path).obs()
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def external_link(root, other, rows):
    root["obs/donor"] = h5py.ExternalLink(other, "secret")


def virtual_data(root, other, rows):
    layout = h5py.VirtualLayout(shape=(rows,), dtype="i8")
    layout[:] = h5py.VirtualSource(other, "secret", shape=(rows,))
    root.create_virtual_dataset("obs/donor", layout)


def external_data(root, other, rows):
    root.create_dataset("obs/donor", (rows,), "i8", external=[(other, 0, 8 * rows)])


@pytest.mark.parametrize("way", [external_link, virtual_data, external_data])
@pytest.mark.parametrize("kind", ["h5ad csr", "loom", "10x h5 version 3"])
def test_hdf5_that_has_another_file_read(kind, way, tmp_path):
    path = WRITERS[kind](example_cells(), tmp_path)
    rows, other = 57, str(tmp_path / "private.h5")
    with h5py.File(other, "w") as root:
        root["secret"] = np.arange(rows)
    with h5py.File(path, "r+") as root:
        root.require_group("obs").pop("donor", None)
        way(root, other, rows)
    assert "takes data from other files" in refusal(path)


def test_names_within_one_file_are_followed(tmp_path):
    path = WRITERS["h5ad csr"](example_cells(), tmp_path)
    with h5py.File(path, "r+") as root:
        root["obs/again"] = h5py.SoftLink("/obs/filter_pass")
    found = open_counts(path).obs(["filter_pass", "again"])
    np.testing.assert_array_equal(found["again"], found["filter_pass"])


def test_groups_that_lie_in_each_other_or_in_themselves(tmp_path):
    """To visit all names takes HDF5 the square of the depth; a group may be below itself."""
    path = WRITERS["h5ad csr"](example_cells(), tmp_path)
    with h5py.File(path, "r+") as root:
        for number in range(30):
            below = root.create_group(f"uns/{number + 1}")
            root[f"uns/{number}/a"] = root[f"uns/{number}/b"] = below
        root["uns/again"] = root["uns"]
    assert open_counts(path).n_cells == 57
    with h5py.File(path, "r+") as root:
        root.create_group("uns" + "/g" * 300)
    assert "never ends" in refusal(path)


def test_links_out_of_a_zarr_store(tmp_path):
    path = WRITERS["zarr 3 csr"](example_cells(), tmp_path)
    (tmp_path / "elsewhere.zarr").symlink_to(path)
    assert open_counts(tmp_path / "elsewhere.zarr").n_cells == 57
    chunk = path / "obs" / "filter_pass" / "c" / "0"
    shutil.move(chunk, tmp_path / "private")
    chunk.symlink_to(tmp_path / "private")
    assert "holds links to files that lie elsewhere" in refusal(path)


def test_links_out_of_a_cell_store(tmp_path):
    store = make_store(tmp_path / "store", toy_cells(9), toy_vocabulary(), obs=("kind",))
    table = store.folder / "obs.parquet"
    shutil.move(table, tmp_path / "private.parquet")
    table.symlink_to(tmp_path / "private.parquet")
    with pytest.raises(InputError, match="holds links to files that lie elsewhere"):
        CellStore.open(store.folder)


def test_pipes_are_not_waited_for(tmp_path):
    store = make_store(tmp_path / "store", toy_cells(9), toy_vocabulary()).folder
    model = save_model(toy_model(), tmp_path / "model", {})
    for file, read in ((store / "obs.parquet", CellStore.open), (model / "_METADATA", load_model)):
        file.unlink(missing_ok=True)
        os.mkfifo(file)
        with pytest.raises(InputError, match=f"{file.name} is a pipe or a device"):
            read(file.parent)


def test_names_that_lead_out_of_a_zip(tmp_path):
    """Nothing is unpacked: such members are never asked for."""
    path = WRITERS["zarr 2 csr"](example_cells(), tmp_path)
    zipped = shutil.make_archive(tmp_path / "cells.zarr", "zip", path)
    expected = open_counts(zipped).obs()
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr("../outside", "x")
        archive.writestr(str(tmp_path / "outside"), "x")
    assert open_counts(zipped).obs().equals(expected)
    assert not (tmp_path / "outside").exists() and not (tmp_path.parent / "outside").exists()


def test_descriptions_that_unpack_to_too_much(tmp_path, monkeypatch):
    path = WRITERS["zarr 2 csr"](example_cells(), tmp_path)
    zipped = shutil.make_archive(tmp_path / "cells.zarr", "zip", path)
    monkeypatch.setattr(containers, "_MOST_METADATA", 1000)
    with zipfile.ZipFile(zipped, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("layers/.zattrs", json.dumps({"note": "x" * 2000}))
    assert "layers/.zattrs unpacks to more" in refusal(zipped)
    with zipfile.ZipFile(zipped, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("layers/0", bytes(1 << 20))
    assert "layers/0 unpacks to far more" in refusal(zipped)


def test_a_zip_whose_store_lies_at_its_root(tmp_path):
    zipped = tmp_path / "cells.zarr.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("/.zgroup", '{"zarr_format": 2}')
    assert "cannot be read as zarr AnnData: No group found" in refusal(zipped)


def test_a_torch_archive_whose_members_unpack_to_too_much(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/byteorder", b"little" * 100_000)
    with pytest.raises(InputError, match="byteorder or holds too much there"):
        torch_bin.list_tensors(path)


@pytest.mark.parametrize("name", ["matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"])
def test_one_line_that_never_ends(name, tmp_path):
    path = WRITERS["10x mtx version 3 gz"](example_cells(), tmp_path)
    file = path / name
    head = b"%%MatrixMarket matrix coordinate integer general\n%" if "mtx" in name else b""
    with gzip.open(file, "wb", 1) as packed:
        packed.write(head)
        for _ in range(20):
            packed.write(b"a" * (1 << 20))
    assert os.path.getsize(file) < 1 << 18
    message = refusal(path)
    assert len(message) < 600 and ("mtx" in name or "a line of more than" in message)
