"""Stores made in shares of rows: the same, byte for byte, as those of one process."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.store import builder
from geneformer_jax.cells.store import writer as store_writer
from geneformer_jax.cells.store.builder import StoreBuild
from geneformer_jax.cells.store.building.shares import key_of
from geneformer_jax.cells.store.cell_store import CellStore
from geneformer_jax.cells.tokenization.quality_control import QualityRules
from geneformer_jax.cells.tokenization.tokenizer import TokenizerOptions
from geneformer_jax.common.errors import InputError
from tests.helpers.count_files import WRITERS
from tests.helpers.small_stores import build, cells, same_stores, write
from tests.helpers.soma_files import require_tiledbsoma, write_experiment

PROJECT = Path(__file__).resolve().parents[2]
VALUES = 150
PAPER = QualityRules(total_sd=1.5, mitochondrial_sd=1.5, min_genes=12)
NO_RULES = QualityRules(total_sd=None, mitochondrial_sd=None, min_genes=None)
FORMATS = [
    "h5ad csr gzip",
    "h5ad csc",
    "h5ad dense",
    "zarr 3 csr small chunks",
    "zarr 3 dense",
    "10x h5 version 3",
    "experiment",
]


def spread_cells():
    """Cells of which rules leave some out: by their totals, mitochondrial fraction and genes."""
    adata = cells(3, "x", n_cells=60)
    names = adata.var["gene_symbol"].tolist()
    adata.var["gene_symbol"] = [f"MT-{name}" if n < 9 else name for n, name in enumerate(names)]
    return adata


def start(folder, paths, vocabulary, skip=False, **options):
    """A surveyed build in small pieces, as a process of its own would begin it."""
    options = {"max_length": 2048, "quality": PAPER, **options}
    obs = options.pop("obs", ["donor", "filter_pass"])
    chosen = TokenizerOptions(**options)
    run = StoreBuild(folder, vocabulary, chosen, CountOptions(), obs, piece_values=VALUES)
    run.survey(paths, skip)
    return run


def make_all(folder, paths, vocabulary, shares, order, **options):
    """Every share, in an order, again and again until all are made."""
    todo = list(order)
    for _ in range(3):
        todo = [
            i for i in todo if not start(folder, paths, vocabulary, **options).write((i, shares))
        ]
    assert not todo
    start(folder, paths, vocabulary, **options).finish({})
    return CellStore.open(folder)


def content_of(folder):
    """Every file of a store, but for the time in its provenance."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[str(path.relative_to(folder))] = path.read_bytes()
    provenance = json.loads(files.pop("provenance.json"))
    del provenance["written_at"]
    return files | {"provenance.json": provenance}


def write_as(name, adata, folder):
    folder.mkdir(exist_ok=True)
    if name != "experiment":
        return WRITERS[name](adata, folder)
    require_tiledbsoma()
    return write_experiment(folder / "experiment", adata)


@pytest.mark.parametrize("name", FORMATS)
def test_shares_of_every_format_join_to_the_bytes_of_one_process(tmp_path, vocabulary, name):
    paths = [write_as(name, spread_cells(), tmp_path / "one")]
    paths.append(write(cells(4, "y", n_cells=9), tmp_path / "y.h5ad"))
    obs = [] if name.startswith("10x") else ["donor", "filter_pass"]
    whole = start(tmp_path / "whole", paths, vocabulary, obs=obs)
    assert whole.write() and whole.finish({})
    expected = content_of(tmp_path / "whole")
    assert not any("shares" in name or "lock" in name for name in expected)
    pieces = len(list((tmp_path / "whole" / "sources").glob("*/source.json")))
    assert (pieces > 3) == (name != "h5ad csc")
    make_all(tmp_path / "shared", paths, vocabulary, 3, (2, 0, 1), obs=obs)
    assert content_of(tmp_path / "shared") == expected


def test_pieces_change_nothing_but_files(tmp_path, files, vocabulary):
    """Tokens, columns and counts are those of sources that are not cut."""
    rules = {"quality": PAPER, "obs": ["donor", "cell_type"]}
    whole, counts = build(tmp_path / "whole", files, vocabulary, **rules)
    cut, same_counts = build(tmp_path / "cut", files, vocabulary, piece_values=VALUES, **rules)
    assert len(cut.shards) > len(whole.shards) == 3 and len(counts["dropped"]) > 2
    assert cut.cell_ids.tolist() == whole.cell_ids.tolist()
    assert counts == same_counts
    for one, other in zip(cut.read(range(len(cut))), whole.read(range(len(cut))), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(cut.lengths, whole.lengths)
    np.testing.assert_array_equal(cut.n_genes, whole.n_genes)
    assert cut.obs.equals(whole.obs)


def test_a_share_waits_until_all_cells_of_its_source_are_measured(tmp_path, vocabulary):
    path = write(spread_cells(), tmp_path / "x.h5ad")
    first = start(tmp_path / "store", [path], vocabulary)
    assert not first.write((0, 2)) and not first.write((0, 2))
    assert not list(tmp_path.glob("store/sources/*/source.json"))
    second = start(tmp_path / "store", [path], vocabulary)
    assert second.write((1, 2)) and first.write((0, 2))
    kept = CellStore(_finished(first)).obs.index
    whole, _ = build(tmp_path / "whole", [path], vocabulary, quality=PAPER)
    assert kept.tolist() == whole.cell_ids.tolist() and len(whole) < 50


def _finished(run):
    run.finish({})
    return run.folder


def test_a_kill_costs_one_piece(tmp_path, vocabulary, monkeypatch):
    path = write(spread_cells(), tmp_path / "x.h5ad")
    whole = start(tmp_path / "whole", [path], vocabulary)
    assert whole.write() and whole.finish({})
    write_piece, calls = store_writer.write_source, itertools.count()

    def killed_at_the_fourth(*arguments):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return write_piece(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_writer, "write_source", killed_at_the_fourth)
        start(tmp_path / "store", [path], vocabulary).write()
    found = {each: each.stat().st_mtime_ns for each in tmp_path.glob("store/sources/*/source.json")}
    assert len(found) == 3
    again = start(tmp_path / "store", [path], vocabulary)
    assert again.write()
    assert {each: each.stat().st_mtime_ns for each in found} == found
    again.finish({})
    assert content_of(tmp_path / "store") == content_of(tmp_path / "whole")


def test_missing_pieces_are_named_with_their_share(tmp_path, files, vocabulary):
    first = start(tmp_path / "store", files, vocabulary, quality=QualityRules(None, {}, None, None))
    for i in (0, 1, 3):
        assert first.write((i, 4))
    with pytest.raises(InputError) as raised:
        first.finish({})
    message = str(raised.value)
    assert "pieces are not tokenised yet, the first is rows " in message
    assert "run `shard`=2/4, then `finish` again" in message
    assert first.write((2, 4)) and first.finish({})


def test_a_source_that_changes_in_between_is_made_anew_and_the_rest_kept(
    tmp_path, files, vocabulary
):
    rules = {"quality": QualityRules(None, {}, None, None)}
    first = start(tmp_path / "store", files, vocabulary, **rules)
    assert first.write((0, 9))
    cells(9, "a", n_cells=25).write_h5ad(files[0])
    with pytest.raises(InputError, match=r"a\.h5ad has changed since it was looked at"):
        first.write((0, 2))
    again = start(tmp_path / "store", files, vocabulary, **rules)
    assert again.write((1, 2))
    with pytest.raises(InputError, match=r"a\.h5ad \(\S*a\.h5ad has changed since others of its"):
        again.finish({})
    assert again.write((0, 2)) and again.finish({})
    whole = start(tmp_path / "whole", files, vocabulary, **rules)
    assert whole.write() and whole.finish({})
    same_stores(CellStore(tmp_path / "store"), CellStore(tmp_path / "whole"))


def test_others_take_what_the_first_process_wrote_down(tmp_path, files, vocabulary, monkeypatch):
    start(tmp_path / "store", files, vocabulary)
    (index,) = tmp_path.glob("store/shares/index-*.json")
    monkeypatch.setattr(StoreBuild, "_survey", None)
    assert len(start(tmp_path / "store", files, vocabulary).index.pieces) > 6
    os.utime(files[1])
    with pytest.raises(TypeError):
        start(tmp_path / "store", files, vocabulary)
    assert index.is_file() and not list(tmp_path.glob("*.lock"))


def test_shares_that_nobody_can_make_are_refused(tmp_path, files, vocabulary):
    run = start(tmp_path / "store", files, vocabulary)
    with pytest.raises(InputError, match=r"`shard` is 0/88, but there are only 87 cells"):
        run.write((0, 88))
    with pytest.raises(InputError, match="made with max_length=2048, but now it is 64"):
        start(tmp_path / "store", files, vocabulary, max_length=64)


def test_shares_are_of_equal_values_and_may_be_empty(tmp_path, files, vocabulary, caplog):
    run = start(tmp_path / "store", files, vocabulary)
    sizes = np.concatenate([anndata.read_h5ad(path).X.getnnz(1) for path in files])
    shares = [run.index.share((i, 4)) for i in range(4)]
    assert [piece for share in shares for piece in share] == run.index.pieces
    ends = np.cumsum([sum(piece.cells for piece in share) for share in shares])
    values = np.add.reduceat(sizes, [0, *ends[:-1]])
    # Cuts lie at most half a piece from where they should.
    assert np.abs(values - sizes.sum() / 4).max() < 1.5 * VALUES
    with caplog.at_level("INFO", "geneformer_jax"):
        for i in range(80):
            run.write((i, 80))
    pieces = len(run.index.pieces)
    assert f"shard 1/80 is empty: {pieces} pieces in all" in caplog.text
    assert f": 1 of {pieces} pieces, " in caplog.text


def test_the_same_share_is_made_by_one_process_at_a_time(tmp_path, files, vocabulary):
    run = start(tmp_path / "store", files, vocabulary)
    hold = (
        "import sys; from pathlib import Path; from geneformer_jax.common import workdir;"
        "held = workdir.lock_folder(Path(sys.argv[1]), (1, 3)); print(1, flush=True); input()"
    )
    program = [sys.executable, "-c", hold, str(tmp_path / "store" / "lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": PROJECT}
    with subprocess.Popen(program, **pipes) as other:
        other.stdout.readline()
        run.write((0, 3))
        told = r"another process is at work on shard 1/3 of .*; .* run the same command again$"
        with pytest.raises(InputError, match=told):
            run.write((1, 3))
        with pytest.raises(InputError, match=r"another process is at work on .*`shard`$"):
            run.finish({})
        other.communicate(b"done")
    run.write((1, 3))


def test_what_another_process_has_just_made_is_not_made_again(
    tmp_path, files, vocabulary, monkeypatch
):
    store, shard, rules = tmp_path / "store", (0, 2), {"quality": NO_RULES}
    late = start(store, files[:1], vocabulary, **rules)

    def note_shares(*given):
        monkeypatch.undo()
        assert start(store, files[:1], vocabulary, **rules).write(shard)
        builder.note_shares(*given)

    monkeypatch.setattr(builder, "note_shares", note_shares)
    assert late.write(shard)


def test_a_source_that_turns_bad_in_one_piece_is_left_out_whole(tmp_path, files, vocabulary):
    adata = spread_cells()
    adata.X = adata.X.astype(np.float32)
    for row in (50, 20):
        adata.X[row, adata.X[row].indices[0]] = 0.5
    path = write(adata, tmp_path / "x.h5ad")
    paths = [files[0], path, files[1]]
    expected, _ = build(tmp_path / "good", [files[0], files[1]], vocabulary, piece_values=VALUES)
    for rules in (PAPER, QualityRules()):
        contents = []
        for shares, order in ((1, (0,)), (3, (2, 1, 0))):
            folder = tmp_path / f"{shares} {rules.min_genes}"
            for i in order:
                run = start(folder, paths, vocabulary, skip=True, quality=rules, obs=())
                run.write((i, shares), skip_bad_files=True)
            for i in order:
                assert run.write((i, shares), skip_bad_files=True)
            reason = run.finish({}, skip_bad_files=True)["skipped_files"][str(path)]
            assert 'cell "x20"' in reason
            assert set(CellStore(folder).cell_ids) <= set(expected.cell_ids)
            contents.append(content_of(folder))
        assert contents[0] == contents[1] and not list(folder.glob("sources/x-*/*"))
    with pytest.raises(InputError, match='cell "x20"'):
        start(tmp_path / "no", paths, vocabulary).write()


def test_a_piece_that_is_read_the_second_time_is_not_left_out(tmp_path, vocabulary):
    path = write(cells(3, "x"), tmp_path / "x.h5ad")
    run = start(tmp_path / "store", [path], vocabulary, skip=True, obs=())
    key = key_of(run.index, run.index.pieces[1])
    store_writer.note_bad_source(tmp_path / "store", key, "the disk did not answer")
    assert run.write(skip_bad_files=True)
    assert run.finish({}, skip_bad_files=True)["skipped_files"] == {}


def test_a_store_of_pieces_grows(tmp_path, files, vocabulary):
    build(tmp_path / "store", files[:2], vocabulary, ["donor"], piece_values=VALUES)
    # Whatever a piece is later, what the store holds stays as it is.
    grown, counts = build(tmp_path / "store", files, vocabulary, ["donor"], piece_values=400)
    assert counts["cells_in_files"] == 87 and len(counts["sources"]) == 3
    whole, _ = build(tmp_path / "whole", files, vocabulary, ["donor"])
    assert grown.cell_ids.tolist() == whole.cell_ids.tolist()
    with pytest.raises(InputError, match='"a0" is in'):
        build(
            tmp_path / "store", [write(cells(0, "a"), tmp_path / "d.h5ad")], vocabulary, ["donor"]
        )


def test_cells_without_any_count_are_counted_in_each_piece(tmp_path, vocabulary):
    adata = anndata.concat([cells(0, "a"), cells(0, "b")], merge="same")
    path = write(adata, tmp_path / "x.h5ad")
    _, counts = build(tmp_path / "store", [path], vocabulary, ["cell_type"], piece_values=VALUES)
    assert counts["dropped"] == {"no gene of the vocabulary": 2}
    dropped = {label: each["dropped"] for label, each in counts["by_label"]["cell_type"].items()}
    empty = adata.obs["cell_type"].astype(str)[np.asarray(adata.X.sum(1)).ravel() == 0]
    assert {name: n for name, n in dropped.items() if n} == empty.value_counts().to_dict()
