"""Results written into an AnnData, in place or on a copy, in forms that survive `write_h5ad`."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from geneformer_jax.common.arguments import describe, require_key, require_text, require_type
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.log import logger

if TYPE_CHECKING:
    import anndata
    import pandas as pd


@contextlib.contextmanager
def written_into(adata: anndata.AnnData, key: str, copy: bool) -> Iterator[anndata.AnnData]:
    """Yields the AnnData that results are written into: the given one, or a copy of it.

    A view becomes an AnnData of its own when it is written into.

    Args:
      adata: with the cells.
      key: name of the results.
      copy: whether to leave `adata` as it is.

    Raises:
      InputError: it is no AnnData; it is on disk, and a copy or a part of it is wanted.
    """
    import anndata

    require_anndata(adata)
    require_key("key_added", key, "a name for the results")
    if not isinstance(copy, bool):
        raise InputError(f"`copy` is {describe(copy)}; give True or False")
    if adata.isbacked and (copy or adata.is_view):
        what = "of which no copy can be made" if copy else "and this a part of it"
        raise InputError(f"the AnnData is backed by {adata.filename}, {what}; use .to_memory()")
    if adata.is_view and not copy:
        logger.warning(
            "the AnnData is a view: it becomes one of its own with the results, and what it was a "
            "part of stays as it is"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", anndata.ImplicitModificationWarning)
        try:
            yield adata.copy() if copy else adata
        except InputError as error:
            raise InputError(_as_called_here(str(error))) from error


def _as_called_here(message: str) -> str:
    """Names what chooses the counts as `gf.pp` and `gf.tl` do."""
    called = "`layer` or `use_raw`" if '"raw"' in message else "`layer`"
    return message.replace("by `counts_layer`", f"by {called}")


def require_anndata(adata: object) -> None:
    """Raises InputError unless this is an AnnData."""
    import anndata

    require_type("adata", adata, anndata.AnnData, "read one first: anndata.read_h5ad(path)")


def results_in(adata: anndata.AnnData, key: str, made_by: str) -> dict[str, Any]:
    """Returns what a function of `tl` wrote under a key of `.uns`.

    Raises:
      InputError: there is nothing of that kind.
    """
    require_anndata(adata)
    require_text("key", key, "a key of .uns")
    found = adata.uns.get(key)
    if not (isinstance(found, Mapping) and "params" in found):
        raise InputError(
            f'.uns["{key}"] holds nothing that {made_by} wrote{did_you_mean(key, adata.uns)}; call '
            f"{made_by} first, or give the `key` that it was told"
        )
    return dict(found)


def parameters(**given: object) -> dict[str, Any]:
    """Returns arguments as `.uns` can hold them; those that are None are left out."""
    return {name: _plain(value) for name, value in given.items() if value is not None}


def _plain(value: object) -> object:
    if isinstance(value, str | numbers.Number):
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    # A name with a slash would be a group in a file.
    if isinstance(value, Mapping) and not any("/" in str(name) for name in value):
        return parameters(**{str(name): each for name, each in value.items()})
    if isinstance(value, list | tuple) and all(isinstance(each, str | numbers.Number)
                                               for each in value):  # fmt: skip
        return list(value)
    return str(value)


def storable(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table whose texts have no gaps, under a plain index."""
    texts = table.select_dtypes(["object", "category", "string"])
    as_text = {name: values.astype(object).fillna("").astype(str) for name, values in texts.items()}
    return table.assign(**as_text).reset_index(drop=True).rename(index=str)
