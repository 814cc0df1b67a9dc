"""Folders of Matrix Market files as pipelines lay them out, and what is said of others."""

import gzip
import logging
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
from scipy import sparse

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.formats.matrix_market import MatrixMarketPieces, _CheckedLines
from geneformer_jax.cells.formats.open import expand_paths, open_counts
from geneformer_jax.common.errors import InputError
from tests.helpers.count_files import WRITERS, example_cells


def write_matrix(path, matrix):
    """As sprs, which alevin-fry uses, writes it: real numbers and a comment."""
    entries = sparse.coo_matrix(matrix)
    lines = ["%%MatrixMarket matrix coordinate real general", "% written by sprs"]
    lines.append(f"{matrix.shape[0]} {matrix.shape[1]} {entries.nnz}")
    lines += [
        f"{row + 1} {column + 1} {value:g}"
        for row, column, value in zip(entries.row, entries.col, entries.data, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))


def read(path, **options):
    source = open_counts(path, CountOptions(**options))
    return source, sparse.vstack([batch.counts for batch in source.batches()]).toarray()


@pytest.fixture
def adata():
    return example_cells(n_cells=11, n_genes=23)


@pytest.fixture
def fry(adata, tmp_path):
    """alevin-fry's folder with spliced, unspliced and ambiguous counts of each gene."""
    rng = np.random.default_rng(1)
    parts = [adata.X.toarray(), *(rng.poisson(0.5, adata.shape) for _ in range(2))]
    write_matrix(tmp_path / "quants_mat.mtx", np.hstack(parts))
    write_lines(tmp_path / "quants_mat_rows.txt", adata.obs_names)
    ids = list(adata.var["ensembl_id"])
    names = [f"{gene}{mark}" for mark in ("", "-U", "-A") for gene in ids]
    write_lines(tmp_path / "quants_mat_cols.txt", names)
    return tmp_path, dict(zip(("spliced", "unspliced", "ambiguous"), parts, strict=True))


@pytest.mark.parametrize(
    ("layer", "added"),
    [
        (None, ["spliced", "ambiguous"]),
        ("X", ["spliced", "ambiguous"]),
        ("unspliced", ["unspliced"]),
        ("spliced+unspliced+ambiguous", ["spliced", "unspliced", "ambiguous"]),
    ],
)
def test_blocks_of_alevin_fry(layer, added, adata, fry):
    folder, parts = fry
    for path in (folder, folder / "quants_mat.mtx"):
        source, counts = read(path, counts_layer=layer)
        assert np.array_equal(counts, sum(parts[name] for name in added))
        assert list(source.gene_ids) == list(adata.var["ensembl_id"])
        assert list(source.cell_ids) == list(adata.obs_names)


def test_a_block_that_is_not_there(fry):
    with pytest.raises(InputError, match=r'no layer "splice" \(did you mean "spliced"'):
        read(fry[0], counts_layer="splice")


def test_alevin_fry_without_blocks(tmp_path):
    # The number of genes is a multiple of 3, as if there were blocks.
    adata = example_cells(n_cells=11, n_genes=24)
    write_matrix(tmp_path / "quants_mat.mtx", adata.X)
    write_lines(tmp_path / "quants_mat_rows.txt", adata.obs_names)
    write_lines(tmp_path / "quants_mat_cols.txt", adata.var["ensembl_id"])
    assert np.array_equal(read(tmp_path)[1], adata.X.toarray())


@pytest.mark.parametrize("matrix", ["count_matrix", "DGE", "GSM1_DGE"])
@pytest.mark.parametrize("genes", ["all_genes", "genes"])
@pytest.mark.parametrize("compressed", [False, True])
def test_parse(matrix, genes, compressed, adata, tmp_path):
    prefix = matrix.removesuffix("DGE") if matrix.startswith("GSM") else ""
    scipy.io.mmwrite(tmp_path / f"{matrix}.mtx", adata.X.tocoo())
    table = pd.DataFrame(
        {
            "gene_id": adata.var["ensembl_id"],
            "gene_name": adata.var["gene_symbol"],
            "genome": "hg38",
        }
    )
    # Old versions wrote the number of the row first, without a name.
    table.to_csv(tmp_path / f"{prefix}{genes}.csv", index=genes == "genes")
    cells = pd.DataFrame({"bc_wells": adata.obs_names, "sample": adata.obs["donor"].to_numpy()})
    cells.to_csv(tmp_path / f"{prefix}cell_metadata.csv", index=False)
    if compressed:
        for file in list(tmp_path.iterdir()):
            Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    (path,) = expand_paths(str(tmp_path))
    source, counts = read(path)
    assert np.array_equal(counts, adata.X.toarray())
    assert list(source.gene_ids) == list(adata.var["ensembl_id"])
    assert list(source.symbols) == list(adata.var["gene_symbol"])
    assert list(source.cell_ids) == list(adata.obs_names)
    assert list(source.obs()["sample"]) == list(adata.obs["donor"])


def test_ids_of_parse_stay_texts(adata, tmp_path):
    scipy.io.mmwrite(tmp_path / "DGE.mtx", adata.X.tocoo())
    adata.var[["ensembl_id"]].to_csv(tmp_path / "all_genes.csv", index=False)
    cells = pd.DataFrame({"cell": [f"00{n:02d}" for n in range(11)], "age": range(11)})
    cells.to_csv(tmp_path / "cell_metadata.csv")
    source = open_counts(tmp_path)
    assert list(source.cell_ids) == list(cells["cell"])
    assert list(source.obs()["age"]) == list(range(11))


@pytest.fixture
def tenx(adata, tmp_path):
    return WRITERS["10x mtx version 2"](adata, tmp_path)


def test_a_file_of_genes_that_samples_share(adata, tenx):
    for sample in ("GSM1_N-Total", "GSM2_N-Total"):
        for name in ("matrix.mtx", "barcodes.tsv"):
            (tenx / f"{sample}-{name}").write_bytes((tenx / name).read_bytes())
    (tenx / "genes.tsv").rename(tenx / "GSE1_features.tsv")
    for name in ("matrix.mtx", "barcodes.tsv"):
        (tenx / name).unlink()
    paths = expand_paths(str(tenx))
    assert [path.name for path in paths] == ["GSM1_N-Total-matrix.mtx", "GSM2_N-Total-matrix.mtx"]
    for path in paths:
        source, counts = read(path)
        assert np.array_equal(counts, adata.X.toarray())
        assert list(source.gene_ids) == list(adata.var["ensembl_id"])


def test_quotes_as_r_writes_them_and_lines_as_windows_ends_them(adata, tenx):
    for name in ("genes.tsv", "barcodes.tsv"):
        lines = (tenx / name).read_text().splitlines()
        quoted = ["\t".join(f'"{field}"' for field in line.split("\t")) for line in lines]
        (tenx / name).write_bytes("".join(f"{line}\r\n" for line in quoted).encode())
    source, counts = read(tenx)
    assert np.array_equal(counts, adata.X.toarray())
    assert list(source.gene_ids) == list(adata.var["ensembl_id"])
    assert list(source.symbols) == list(adata.var["gene_symbol"])
    assert list(source.cell_ids) == list(adata.obs_names)


def test_a_matrix_of_cells_by_genes_is_turned_over(adata, tenx):
    scipy.io.mmwrite(tenx / "matrix.mtx", adata.X.tocoo())
    assert np.array_equal(read(tenx)[1], adata.X.toarray())


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("matrix coordinate pattern general", 'holds "pattern" values'),
        ("matrix coordinate complex general", 'holds "complex" values'),
        ("matrix coordinate integer symmetric", 'is "symmetric"'),
        ("matrix array integer general", "is a dense matrix"),
        ("vector", "is not a Matrix Market file"),
    ],
)
def test_matrices_that_are_no_counts(header, words, tenx):
    lines = (tenx / "matrix.mtx").read_text().splitlines()
    (tenx / "matrix.mtx").write_text("\n".join([f"%%MatrixMarket {header}", *lines[1:]]))
    with pytest.raises(InputError, match=words) as error:
        open_counts(tenx)
    assert "matrix.mtx" in str(error.value)


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_that_does_not_end_is_given_up(packed, tmp_path):
    content = b"%%MatrixMarket matrix coordinate integer general\n3 4 2\n1 1 5\n" + b"1 " * (
        1 << 20
    )
    path = tmp_path / ("m.mtx.gz" if packed else "m.mtx")
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    taken = []
    pieces = MatrixMarketPieces(path, genes_first=True)
    with pytest.MonkeyPatch.context() as patch:
        read1 = _CheckedLines.read1
        patch.setattr(
            _CheckedLines, "read1", lambda *given: taken.append(read1(*given)) or taken[-1]
        )
        with pytest.raises(InputError, match=r"m\.mtx.*line of more than 65,536 letters.*copy it"):
            list(pieces.pieces())
    assert sum(map(len, taken)) < 1 << 17


@pytest.mark.parametrize("name", ["read", "read1"])
@pytest.mark.parametrize("size", [-1, 1000])
def test_whichever_way_pandas_asks_it_gets_the_bytes_and_no_long_line(name, size, tmp_path):
    """pandas 2 calls `read1`, by way of Python's text files, and 3.1 `read`."""
    for content in (b"1 2 3\n" * 20_000, b"1" * (1 << 17)):
        path = tmp_path / "matrix.mtx"
        path.write_bytes(content)
        with path.open("rb") as file:
            ask = getattr(_CheckedLines(file, path), name)
            if b"\n" in content:
                assert b"".join(iter(lambda ask=ask: ask(size), b"")) == content
            else:
                with pytest.raises(InputError, match="has a line of more than 65,536 letters"):
                    b"".join(iter(lambda ask=ask: ask(size), b""))


@pytest.mark.parametrize("where", ["matrix.mtx", "barcodes.tsv", "genes.tsv"])
def test_nul_bytes_are_the_end_of_no_number_or_name(where, tenx):
    """Where writing broke off, a disk may leave them; pandas reads 5 where 55 lost its end so."""
    content = bytearray((tenx / where).read_bytes())
    content[-3] = 0
    (tenx / where).write_bytes(content)
    with pytest.raises(InputError, match=f"{where}.*holds NUL bytes"):
        source = open_counts(tenx)
        _ = source.cell_ids
        list(source.batches())


@pytest.mark.parametrize("ending", ["\n", "\r", "\r\n"])
def test_many_lines_of_any_ending_are_no_long_line(ending, tmp_path):
    head = f"%%MatrixMarket matrix coordinate integer general\n300 300 {90_000}\n"
    rows = [f"{row} {column} {row}" for row in range(1, 301) for column in range(1, 301)]
    (tmp_path / "m.mtx").write_bytes((head + ending.join(rows) + ending).encode())
    (piece,) = MatrixMarketPieces(tmp_path / "m.mtx", genes_first=True).pieces()
    assert len(piece.values) == 90_000 and piece.values.sum() == 300 * sum(range(301))


@pytest.mark.parametrize("in_its_place", ["nothing", "a folder"])
@pytest.mark.parametrize("missing", ["barcodes.tsv", "genes.tsv"])
def test_a_missing_sister_is_named(missing, in_its_place, tenx):
    (tenx / missing).unlink()
    if in_its_place == "a folder":
        (tenx / missing).mkdir()
    with pytest.raises(InputError, match=rf"holds no .*{missing}.* beside matrix\.mtx: copy it"):
        open_counts(tenx)


@pytest.mark.parametrize("name", ["barcodes.tsv", "genes.tsv"])
def test_a_heading_is_looked_for_where_names_are_too_many(name, tenx):
    (tenx / name).write_text("heading\n" + (tenx / name).read_text())
    words = r"11 cells x 23 genes, but 1\d cells and 2\d genes are named; look in barcodes.tsv and "
    with pytest.raises(InputError, match=words + r"genes\.tsv for a heading"):
        open_counts(tenx)


def test_a_folder_that_is_not_known_says_what_was_looked_for(tmp_path):
    (tmp_path / "tcc.mtx").touch()
    for ask in (open_counts, expand_paths):
        with pytest.raises(InputError, match="STARsolo, kb, alevin-fry and Parse"):
            ask(str(tmp_path))


def test_a_folder_above_says_where_counts_are(tenx, tmp_path):
    inner = tmp_path / "Solo.out" / "Gene"
    inner.mkdir(parents=True)
    tenx.rename(inner / "raw")
    with pytest.raises(InputError, match=r"below it are Gene/raw: give the one you mean"):
        expand_paths(str(tmp_path / "Solo.out"))


XENIUM = ("Negative Control Probe", "Negative Control Codeword", "Genomic Control")


@pytest.mark.parametrize("others", [XENIUM, ("Antibody Capture", "Protein Scaling", "Peaks")])
def test_other_features_are_left_out_and_counted(others, adata, tmp_path, caplog):
    path = WRITERS["10x h5 version 3"](adata, tmp_path)
    types = np.full(adata.n_vars, b"Gene Expression").astype("S40")
    types[[0, 5, 6, 20]] = [others[0], others[1], others[1], others[2]]
    with h5py.File(path, "r+") as root:
        del root["matrix/features/feature_type"]
        root["matrix/features/feature_type"] = types
    kept = np.setdiff1d(np.arange(adata.n_vars), [0, 5, 6, 20])
    with caplog.at_level(logging.INFO, "geneformer_jax"):
        source, counts = read(path)
    assert np.array_equal(counts, adata.X.toarray()[:, kept])
    assert list(source.gene_ids) == list(adata.var["ensembl_id"].iloc[kept])
    for number, kind in ((1, others[0]), (2, others[1]), (1, others[2])):
        assert f"{number} {kind}" in caplog.text


@pytest.mark.parametrize("wrong", ["Gene Impression", "", "gene expression"])
def test_a_type_that_is_damaged(wrong, adata, tmp_path):
    path = WRITERS["10x h5 version 3"](adata, tmp_path)
    with h5py.File(path, "r+") as root:
        root["matrix/features/feature_type"][7] = wrong.encode()
    with pytest.raises(InputError, match=f'feature type "{wrong}" is not known.* copy or write'):
        open_counts(path)


def test_features_without_types(adata, tmp_path):
    path = WRITERS["10x h5 version 3"](adata, tmp_path)
    with h5py.File(path, "r+") as root:
        del root["matrix/features/feature_type"]
    assert np.array_equal(read(path)[1], adata.X.toarray())
