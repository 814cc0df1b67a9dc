"""Files that cannot be used end in one line and exit status 1, and nothing is lost."""

import json
import resource
import shutil

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from geneformer_jax.cells.store import writer
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.common.errors import InputError
from tests.helpers.commands import run_command
from tests.helpers.small_stores import cells, same_stores, with_ids, write


@pytest.fixture
def folder(tmp_path, files, vocabulary, monkeypatch):
    """A folder with three good files in counts/ and a vocabulary."""
    vocabulary.save(tmp_path / "vocabulary")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tokenize(folder, monkeypatch, capsys):
    """Runs the command on all files in counts/; returns its output, or its one error line."""

    def run(*options, fails=False, output="store"):
        arguments = ["--counts=counts", "--vocabulary=vocabulary", f"--output={output}", *options]
        status, output, error = run_command("tokenize", arguments, monkeypatch, capsys)
        assert status == (1 if fails else 0), error
        if not fails:
            return output
        complaints = [line for line in error.splitlines() if "tokenizing" not in line]
        assert len(complaints) == 1 and complaints[0].startswith("error: "), error
        return complaints[0]

    return run


def unreadable(folder):
    (folder / "counts" / "ab.h5ad").write_text("no h5ad at all")


def truncated(folder):
    path = folder / "counts" / "ab.h5ad"
    path.write_bytes((folder / "counts" / "a.h5ad").read_bytes()[:9000])


def fractional(folder):
    """Seen only while the counts are read, when two other files are at work or done."""
    adata = cells(7, "f")
    adata.X = adata.X.astype(np.float32) * 0.3
    adata.write_h5ad(folder / "counts" / "ab.h5ad")


@pytest.mark.parametrize("bad", [unreadable, truncated, fractional])
def test_an_unreadable_file_among_many(folder, tokenize, bad):
    """Named; the others go on only if asked, and it is counted."""
    tokenize(output="whole")
    bad(folder)
    assert "counts/ab.h5ad" in tokenize(fails=True)
    with pytest.raises(InputError):
        CellStore.open("store")
    output = tokenize("--skip_bad_files")
    assert "84 of 87 cells" in output and "1 of 4 files SKIPPED" in output
    assert "SKIPPED counts/ab.h5ad" in output
    same_stores(CellStore.open("store"), CellStore.open("whole"))
    provenance = json.loads((folder / "store" / "provenance.json").read_text())
    assert list(provenance["counts"]["skipped_files"]) == ["counts/ab.h5ad"]
    # Mended, the file joins the others.
    cells(7, "f").write_h5ad(folder / "counts" / "ab.h5ad")
    assert "140 of 144 cells" in tokenize()


def test_no_id_matches(folder, tokenize, vocabulary):
    ids = [f"probe{n}" for n in range(83)]
    write(with_ids(cells(7, "f"), ids), folder / "counts" / "ab.h5ad")
    output = tokenize(fails=True)
    assert "ab.h5ad: 0 of 83 gene ids are in the vocabulary of 83 genes" in output
    assert "such as probe0, probe1, probe2," in output
    assert f"such as {', '.join(vocabulary.gene_ids[:3])};" in output
    assert not (folder / "store").exists()
    assert "84 of 87 cells" in tokenize("--skip_bad_files")


def test_mixed_species(folder, tokenize, vocabulary):
    mixed = [*vocabulary.gene_ids[:60], *(f"ENSMUSG{n:011d}" for n in range(23))]
    write(with_ids(cells(7, "f"), mixed), folder / "counts" / "ab.h5ad")
    output = tokenize()
    assert "60 of 60 gene ids are in the vocabulary" in output
    assert "23 genes of other species are left out" in output


def test_a_cell_id_in_two_files(folder, tokenize):
    adata = cells(7, "f")
    adata.obs_names = ["b3", *adata.obs_names[1:]]
    adata.write_h5ad(folder / "counts" / "d.h5ad")
    output = tokenize(fails=True)
    assert 'cell id "b3" is in counts/b.h5ad and in counts/d.h5ad' in output
    assert "--prefix_cell_ids" in output
    assert not (folder / "store").exists()
    tokenize("--prefix_cell_ids")
    assert {"b|b3", "d|b3"} <= set(CellStore.open("store").cell_ids)


@pytest.fixture
def whole(tokenize):
    """The store as it must become, made where there is room."""
    tokenize("--obs=donor", output="whole")
    return CellStore.open("whole")


def test_a_disk_that_is_full_at_any_file(folder, tokenize, whole):
    """No file may grow beyond a limit that lies just below the size of one of the store's files.

    Whatever file fails first, the command ends in a line, no store is there, and with room again
    the same command gives the same store.
    """
    sizes = {path.stat().st_size for path in whole.folder.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in sorted(sizes - {0}):
        shutil.rmtree("store", ignore_errors=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, hard))
        try:
            output = tokenize("--obs=donor", fails=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "too large" in output and "run the same command again" in output
        with pytest.raises(InputError):
            CellStore.open("store")
        tokenize("--obs=donor")
        same_stores(CellStore.open("store"), whole)
        assert not list((folder / "store").rglob("*.partial*"))


def test_a_disk_without_space(folder, tokenize, whole, monkeypatch):
    """The second file's shard does not fit any more; the first is kept for the next run."""

    class FullDisk:
        def __init__(self, path, options):
            self._writer = ArrayRecordWriter(path, options)
            self.write, self._full = self._writer.write, "/b-" in path

        def close(self):
            self._writer.close()
            if self._full:
                raise RuntimeError("write() failed: No space left on device; at byte 65536")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "ArrayRecordWriter", FullDisk)
        output = tokenize("--obs=donor", fails=True)
    assert "no space left" in output and "run the same command again" in output
    with pytest.raises(InputError, match="not complete"):
        CellStore.open("store")
    (first,) = (folder / "store").glob("sources/a-*/source.json")
    written = first.stat().st_mtime_ns
    assert not list((folder / "store").glob("sources/[bc]-*"))
    tokenize("--obs=donor")
    assert first.stat().st_mtime_ns == written
    same_stores(CellStore.open("store"), whole)
