"""What is found below a folder, and that nothing outside it is."""

import os
import shutil

import h5py
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.explorer.folder import find_results

EXPECTED = {
    "embeddings": ["cells.h5ad"],
    "gene_embeddings": ["genes.h5ad"],
    "stores": ["store"],
    "perturbations": ["shifts"],
    "classifiers": ["classes"],
    "runs": ["run"],
}


def found_in(folder):
    results = find_results(folder)._asdict()
    return {kind: list(each) for kind, each in results.items() if kind in EXPECTED}


def test_every_kind_is_found_at_any_depth(results_folder, tmp_path):
    assert found_in(results_folder) == EXPECTED
    shutil.copytree(results_folder / "run", tmp_path / "a" / "b" / "run")
    assert found_in(tmp_path)["runs"] == ["a/b/run"]
    assert found_in(tmp_path / "a" / "b" / "run")["runs"] == ["run"]


@pytest.mark.parametrize(
    "link", ["cells.h5ad", "store", "store/lengths.npy", "shifts/statistics/x.parquet", "run"]
)
def test_links_that_lead_out_are_not_followed(results_folder, tmp_path, link):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    shutil.copytree(results_folder, inside)
    path = inside / link
    if path.exists():
        os.rename(path, outside)
    else:
        outside.write_bytes(b"secret")
    path.symlink_to(outside)
    lost = link.partition("/")[0]
    expected = {kind: [each for each in names if each != lost] for kind, names in EXPECTED.items()}
    assert found_in(inside) == expected
    assert any(each.startswith(lost) for each in find_results(inside).left_out)


def test_links_within_the_folder_are_no_second_result(results_folder, tmp_path):
    inside = tmp_path / "inside"
    shutil.copytree(results_folder, inside)
    (inside / "again").symlink_to(inside / "run")
    assert found_in(inside) == EXPECTED
    assert find_results(inside).left_out == []


@pytest.mark.parametrize("way", ["link", "virtual", "external"])
def test_files_that_read_others_are_left_out(results_folder, tmp_path, way):
    secret = tmp_path / "secret.h5"
    shutil.copy(results_folder / "cells.h5ad", secret)
    inside = tmp_path / "inside"
    inside.mkdir()
    shutil.copytree(results_folder / "run", inside / "run")
    shutil.copy(secret, inside / "cells.h5ad")
    with h5py.File(inside / "cells.h5ad", "a") as file:
        shape, kind = file["obsm/X_umap"].shape, file["obsm/X_umap"].dtype
        del file["obsm/X_umap"]
        if way == "link":
            file["obsm/X_umap"] = h5py.ExternalLink("../secret.h5", "obsm/X_umap")
        elif way == "virtual":
            layout = h5py.VirtualLayout(shape, kind)
            layout[:] = h5py.VirtualSource("../secret.h5", "obsm/X_umap", shape)
            file["obsm"].create_virtual_dataset("X_umap", layout)
        else:
            file["obsm"].create_dataset(
                "X_umap", shape, kind, external=[("../secret.h5", 0, h5py.h5f.UNLIMITED)]
            )
    results = find_results(inside)
    assert results.embeddings == {}
    assert results.left_out == ["cells.h5ad reads other files"]


def test_what_cannot_be_read_is_said_and_the_rest_shown(results_folder, tmp_path):
    shutil.copytree(results_folder / "run", tmp_path / "run")
    whole = (results_folder / "cells.h5ad").read_bytes()
    (tmp_path / "cells.h5ad").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    (tmp_path / "counts.npy").write_bytes(b"")
    os.mkfifo(tmp_path / "waits.h5ad")
    results = find_results(tmp_path)
    assert (list(results.runs), results.embeddings) == (["run"], {})
    assert [each.split()[0] for each in results.left_out] == ["cells.h5ad"]


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_a_folder_without_results_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(InputError, match=r"`folder` .*; name "):
        find_results(tmp_path / name)
