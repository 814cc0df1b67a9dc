"""How raw counts are read, whatever file or object they come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from geneformer_jax.cells.counts.lazy_columns import DEFAULT_LIMITS, ReadLimits
from geneformer_jax.common.errors import InputError, did_you_mean


class CountArguments(TypedDict, total=False):
    """The options of `CountOptions` that functions taking counts accept as arguments."""

    counts_layer: str | None
    gene_column: str | None


@dataclass(frozen=True, kw_only=True)
class CountOptions:
    """Which matrix and which gene ids of a source of counts are meant.

    Attributes:
      counts_layer: the matrix with the raw counts: None for the main one (X), "raw" for AnnData's
        raw, the name of a layer, or the genome in a 10x .h5 file of several.
      gene_column: column with the gene ids; None to find it.
      limits: of memory, and of the time in which a damaged file is recognised; they change nothing
        in the result.
    """

    counts_layer: str | None = None
    gene_column: str | None = None
    limits: ReadLimits = DEFAULT_LIMITS

    def __post_init__(self):
        for name in CountArguments.__annotations__:
            value = getattr(self, name)
            if not (value is None or isinstance(value, str)):
                raise InputError(f"`{name}` is {value!r}, but is a name (None for the usual one)")

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, str | None]) -> "CountOptions":
        """Takes the arguments of a function that accepts `CountArguments`.

        Raises:
          InputError: an argument has another name or type.
        """
        known = CountArguments.__annotations__
        for name in arguments:
            if name == "layer":
                raise InputError(
                    "`layer` is no argument: the matrix with the raw counts is named by "
                    "`counts_layer`, the model's hidden states by `hidden_layer`"
                )
            if name not in known:
                raise InputError(
                    f"`{name}` is no argument{did_you_mean(name, known)}; counts are read by: "
                    f"{', '.join(known)}"
                )
        return cls(**arguments)

    def identity(self) -> dict[str, str | None]:
        """All that changes what is read, for work that is continued later."""
        return {"counts_layer": self.counts_layer, "gene_column": self.gene_column}


DEFAULT_OPTIONS = CountOptions()
