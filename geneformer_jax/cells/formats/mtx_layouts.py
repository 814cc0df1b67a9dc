"""Folders with Matrix Market files as pipelines write them: which file is what.

A matrix has sisters, one that names its cells and one that names its genes. All of them may have a
prefix, as files in GEO do, and may be gzipped.
"""

from pathlib import Path
from typing import NamedTuple

from geneformer_jax.cells.counts.matrix_choice import MAIN
from geneformer_jax.common.errors import InputError

_GZIP = ".gz"


class Kind(NamedTuple):
    """How one pipeline lays out its files.

    Attributes:
      software: its name.
      matrices: file of each matrix, without .mtx; named as `counts_layer` chooses them.
      cells: files with names of cells, any of which is there.
      genes: files with names of genes, any of which is there.
      genes_first: whether a row of a matrix is a gene.
      symbols: file with the symbols of the genes alone.
      blocks: name of each block of all genes, where a matrix has several.
      usual: blocks that are added if none is asked for.
    """

    software: str
    matrices: dict[str, str]
    cells: tuple[str, ...]
    genes: tuple[str, ...]
    genes_first: bool = False
    symbols: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()


class Layout(NamedTuple):
    """The files of one folder.

    Attributes:
      kind: the pipeline's.
      matrices: file of each matrix, by the name under which `counts_layer` chooses it.
      cells: file with the names of the cells.
      genes: file with the names of the genes.
      symbols: file with their symbols alone, where there is one.
    """

    kind: Kind
    matrices: dict[str, Path]
    cells: Path
    genes: Path
    symbols: Path | None


_TENX_FILES = {"cells": ("barcodes.tsv",), "genes": ("features.tsv", "genes.tsv")}
_PARSE_GENES = ("all_genes.csv", "genes.csv")
_MULTIMAPPERS = tuple(f"UniqueAndMult-{rule}" for rule in ("EM", "Uniform", "Rescue", "PropUnique"))
_KB = "cells_x_genes"
_KB_PARTS = ("mature", "ambiguous", "nascent", "cell", "nucleus", "total")
# In the order in which they are tried: a name that says more comes first.
KINDS = (
    Kind(
        "kb-python",
        {MAIN: _KB} | {part: f"{_KB}.{part}" for part in _KB_PARTS},
        (f"{_KB}.barcodes.txt",),
        (f"{_KB}.genes.txt",),
        symbols=(f"{_KB}.genes.names.txt",),
    ),
    *(
        Kind("kb-python", {part: part}, (f"{part}.barcodes.txt",), (f"{part}.genes.txt",))
        for part in ("spliced", "unspliced")
    ),
    Kind(
        "alevin-fry",
        {MAIN: "quants_mat"},
        ("quants_mat_rows.txt",),
        ("quants_mat_cols.txt",),
        blocks=("spliced", "unspliced", "ambiguous"),
        usual=("spliced", "ambiguous"),
    ),
    *(
        Kind("Parse Biosciences", {MAIN: name}, ("cell_metadata.csv",), _PARSE_GENES)
        for name in ("count_matrix", "DGE")
    ),
    Kind(
        "Cell Ranger or STARsolo",
        {MAIN: "matrix"} | {name: name for name in _MULTIMAPPERS},
        **_TENX_FILES,
        genes_first=True,
    ),
    Kind(
        "STARsolo Velocyto",
        {part: part for part in ("spliced", "ambiguous", "unspliced")},
        **_TENX_FILES,
        genes_first=True,
    ),
)


def is_matrix(path: Path) -> bool:
    """Whether a file is a matrix that one of the pipelines wrote, by its name."""
    return bool(_matches(path)) and not path.name.startswith(".") and path.is_file()


def is_matrix_folder(folder: Path) -> bool:
    """Whether a folder is one source: it holds a matrix whose name has no prefix."""
    stems = {name for kind in KINDS for name in kind.matrices.values()}
    return any((folder / f"{stem}.mtx{end}").is_file() for stem in stems for end in ("", _GZIP))


def matrix_files(folder: Path) -> list[Path]:
    """The matrices in a folder, prefixed ones (as in GEO) included."""
    return sorted(file for file in folder.iterdir() if is_matrix(file)) if folder.is_dir() else []


def layout_of(path: Path) -> Layout:
    """Finds what belongs to a folder, or to one matrix alone.

    Raises:
      InputError: a file is missing, or the folder holds matrices that belong to different cells.
    """
    files = [path] if path.is_file() else matrix_files(path)
    if not files:
        raise InputError(f"{path} holds no matrix; it was looked for {_names_of_matrices()}")
    groups: dict[tuple[int, str], dict[str, Path]] = {}
    for file in files:
        for number, name, prefix in _matches(file):
            groups.setdefault((number, prefix), {})[name] = file
    whole = [group for group, matrices in groups.items() if len(matrices) == len(files)]
    if not whole:
        listed = ", ".join(file.name for file in files[:3])
        raise InputError(f"{path} holds {len(files)} matrices ({listed}, ...): name one of them")
    folder = files[0].parent
    for number, prefix in whole:
        kind, matrices = KINDS[number], groups[number, prefix]
        cells, genes = _cells_and_genes(folder, prefix, kind)
        if cells and genes:
            order = [MAIN] if path.is_file() else [n for n in kind.matrices if n in matrices]
            named = {n: path if path.is_file() else matrices[n] for n in order}
            return Layout(kind, named, cells, genes, _sister(folder, prefix, kind.symbols))
    missing = "; or no ".join(_missing(folder, prefix, KINDS[number]) for number, prefix in whole)
    raise InputError(f"{folder} holds no {missing} beside {files[0].name}: copy it there")


def _cells_and_genes(folder: Path, prefix: str, kind: Kind) -> tuple[Path | None, Path | None]:
    genes = _sister(folder, prefix, kind.genes) or _shared(folder, kind.genes)
    return _sister(folder, prefix, kind.cells), genes


def _missing(folder: Path, prefix: str, kind: Kind) -> str:
    found = _cells_and_genes(folder, prefix, kind)
    pairs = zip(found, (kind.cells, kind.genes), strict=True)
    missing = [" or ".join(f"{prefix}{n}" for n in names) for file, names in pairs if not file]
    return f"{' and no '.join(missing)} (as {kind.software} has it, or .gz)"


def _matches(file: Path) -> list[tuple[int, str, str]]:
    """(Number of the kind, name of the matrix, prefix) of each kind that a file may be of."""
    stem = file.name.removesuffix(_GZIP)
    if not stem.endswith(".mtx"):
        return []
    stem = stem.removesuffix(".mtx")
    return [
        (number, name, stem.removesuffix(ending))
        for number, kind in enumerate(KINDS)
        for name, ending in kind.matrices.items()
        if stem.endswith(ending)
    ]


def _sister(folder: Path, prefix: str, names: tuple[str, ...]) -> Path | None:
    files = (folder / f"{prefix}{name}{end}" for name in names for end in ("", _GZIP))
    return next((file for file in files if file.is_file()), None)


def _shared(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The one file of genes in a folder, whatever its prefix: in GEO many samples share it."""
    endings = tuple(f"{name}{end}" for name in names for end in ("", _GZIP))
    found = [f for f in folder.iterdir() if f.name.endswith(endings) and f.is_file()]
    return found[0] if len(found) == 1 else None


def _names_of_matrices() -> str:
    return ", ".join(
        f"{next(iter(kind.matrices.values()))}.mtx ({kind.software})" for kind in KINDS
    )
