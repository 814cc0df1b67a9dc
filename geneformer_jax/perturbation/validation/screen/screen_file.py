"""What a file of counts says of its screen, before JAX is loaded and counts are read."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.formats.open import open_counts
from geneformer_jax.cells.formats.paths import as_path, is_counts
from geneformer_jax.cells.tokenization.gene_ids import are_ensembl_ids, strip_version
from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.filters import label_texts, passing
from geneformer_jax.perturbation.validation.config import ValidationOptions
from geneformer_jax.perturbation.validation.screen.labels import read_screen


def require_screen(cells: Path | str, options: ValidationOptions, reading: CountOptions) -> None:
    """Refuses a file that holds no screen that could be validated.

    Which genes the model knows is not known yet. Labels are refused if none of them is a gene of
    the file, and it has names of their kind, symbols or Ensembl ids.

    Args:
      cells: path of the counts.
      options: of the run.
      reading: of the counts.

    Raises:
      InputError: see `read_screen`; or there are no counts.
    """
    column, control = options.perturbation, options.control
    require_counts(cells)
    source = open_counts(cells, reading)
    obs = source.obs(None if options.filters else [column])
    if options.filters:
        obs = obs[passing(obs, options.filters)]
    known = _gene_names(source)

    def find(names: Sequence[str]) -> list[str | None]:
        plain = [strip_version(name).upper() for name in names]
        return [name if name in known else None for name in plain]

    labels = [each for each in label_texts(obs[column]).dropna().unique() if each != control]
    is_any_known = any(find(labels)) or not _kinds(labels) <= _kinds(known)
    read_screen(obs, column, control, find, options.min_cells, lenient=is_any_known)


def require_counts(cells: Path | str) -> None:
    """Raises InputError for cells that are tokenised already, which have no counts."""
    path = as_path(cells)
    if path.is_dir() and not is_counts(path):
        raise InputError(
            f"`cells` {path} has no raw counts, from which measured expression is read; give the "
            "counts that the cells were tokenised from"
        )


def _gene_names(source: CountSource) -> set[str]:
    """Returns all names of genes that the source has, in upper case, without versions."""
    names = set() if source.symbols is None else set(map(str, source.symbols))
    for gene_column in list(source.candidate_gene_columns()):
        source.use_gene_column(gene_column)
        names |= set(source.gene_ids.tolist())
    return {strip_version(name).upper() for name in names if name}


def _kinds(names: Iterable[str]) -> set[bool]:
    """Returns whether some names are Ensembl ids, and whether some are not."""
    plain = pa.array([strip_version(name) for name in names], pa.string())
    return set(are_ensembl_ids(plain).tolist())
