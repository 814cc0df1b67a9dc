"""Which counts are meant, in scanpy's words: `layer` and `use_raw`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypedDict

from geneformer_jax.common.arguments import describe, require_text
from geneformer_jax.common.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import anndata

    from geneformer_jax.cells.counts.options import CountArguments


class GeneArguments(TypedDict, total=False):
    """How genes and totals are found in an AnnData: arguments of `CountOptions`.

    Attributes:
      gene_column: column of `.var` with the gene ids, "index" for the names; found by default.
      symbols: where ids that are no Ensembl ids are looked up.
      compute_totals: compute each cell's total, although `.obs["n_counts"]` states it.
      fractional: "round" or "keep" estimated counts, which are refused by default.
    """

    gene_column: str | None
    symbols: str
    compute_totals: bool
    fractional: str | None


def count_arguments(
    adata: anndata.AnnData,
    layer: str | None,
    use_raw: bool | None,
    genes: Mapping[str, object],
    asked: Callable[..., object],
) -> CountArguments:
    """Returns which counts of an AnnData are meant, as arguments of `CountOptions`.

    Args:
      adata: with the counts.
      layer: name of a layer, or several as in "spliced+unspliced"; None for none.
      use_raw: `.raw`; False never takes it, None leaves the choice to what holds raw counts.
      genes: see `GeneArguments`.
      asked: the function that takes these arguments, among others.

    Raises:
      InputError: there is no such layer, no `.raw`, both are asked for, or `genes` has another
        argument.
    """
    for name in genes.keys() - GeneArguments.__annotations__.keys():
        if name == "counts_layer":
            raise InputError("`counts_layer` is called `layer` here; give that, or `use_raw`")
        known = [*inspect.signature(asked).parameters, *GeneArguments.__annotations__]
        raise InputError(
            f"`{name}` is no argument{did_you_mean(name, known)} of {asked.__name__}, which takes "
            f"{', '.join(known)}"
        )
    if not (use_raw is None or isinstance(use_raw, bool)):
        raise InputError(f"`use_raw` is {describe(use_raw)}; give True, False or None")
    if (matrix := _matrix(adata, layer, use_raw)) is None:
        return {**genes}
    return {"counts_layer": matrix, **genes}


def _matrix(adata: anndata.AnnData, layer: str | None, use_raw: bool | None) -> str | None:
    require_text("layer", layer, "the name of a layer")
    if layer is None:
        if use_raw and adata.raw is None:
            raise InputError("`use_raw` is True, but the AnnData has no .raw; leave it out")
        return {None: None, True: "raw", False: "X"}[use_raw]
    if use_raw:
        raise InputError(f'`layer` is "{layer}" and `use_raw` is True; give one of them')
    names = [name for name in adata.layers if name is not None]
    parts = [layer] if layer in names else layer.split("+")
    if missing := [part for part in parts if part not in names]:
        raise InputError(
            f'the AnnData has no layer "{missing[0]}"{did_you_mean(missing[0], names)}; it has '
            f"{', '.join(names) or 'none'} (`use_raw`=True names .raw, `use_raw`=False X)"
        )
    return layer
