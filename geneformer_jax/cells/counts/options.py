"""How raw counts are read, whatever file or object they come from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypedDict

from geneformer_jax.common.arguments import MEANT_BY_LAYER
from geneformer_jax.common.errors import InputError, did_you_mean

FRACTIONAL_POLICIES = (ROUND, KEEP) = ("round", "keep")
# What only experiments of TileDB-SOMA have.
SOMA_OPTIONS = ("measurement", "obs_filter", "organism")
SYMBOL_POLICIES = ("mapping", "names", "never")


@dataclass(frozen=True)
class ReadLimits:
    """How much of a file is in memory at once, and how long its probe may take.

    Attributes:
      rows: of a column.
      entries: stored values of a sparse matrix in one batch; with indices about 70 MB.
      piece_entries: the same in one piece of a matrix that is not stored by cell.
      dense_values: values of a dense matrix, which are mostly zeros and made sparse at once.
      max_dense_values: the same where chunks of all genes are larger than `dense_values`.
      bucket_entries: entries that are sorted at once where a matrix is not stored by cell.
      scratch_bytes: of such a matrix that stay in memory; a larger one goes through a file.
      probe_seconds: processor time, beside that for the file's size; see `hdf5_probe`.
      known_sound: all pointers and totals of the file, and its texts, have been looked at before:
        now they are only checked where they are read.
    """

    rows: int = 1 << 16
    entries: int = 1 << 23
    piece_entries: int = 1 << 22
    dense_values: int = 1 << 22
    max_dense_values: int = 1 << 25
    bucket_entries: int = 1 << 22
    scratch_bytes: int = 1 << 26
    probe_seconds: int = 10
    known_sound: bool = False


DEFAULT_LIMITS = ReadLimits()


class CountArguments(TypedDict, total=False):
    """The options of `CountOptions` that functions taking counts accept as arguments."""

    counts_layer: str | None
    gene_column: str | None
    symbols: str
    compute_totals: bool
    fractional: str | None
    measurement: str | None
    obs_filter: str | None
    organism: str | None


@dataclass(frozen=True, kw_only=True)
class CountOptions:
    """Which matrix and which gene ids of a source of counts are meant.

    Attributes:
      counts_layer: the matrix with the raw counts: "X" for the main one, "raw" for AnnData's raw,
        the name of a layer, a sum of layers ("spliced+unspliced"), or the genome in a 10x .h5 file
        of several. None finds it: X if that holds raw counts, or else the one that does.
      gene_column: column with the gene ids, "index" for the index; None to find it by its content.
      symbols: where ids that are no Ensembl ids are looked up, see `GeneVocabulary.tokens_of`.
      compute_totals: compute each cell's total, although the file states totals (obs column
        n_counts). Ranks stay the same; rules of quality control and medians use totals.
      fractional: what is done with counts that are not whole, as aligners estimate them: "round"
        takes the nearest whole number, "keep" ranks them as they are; None refuses them.
      measurement: of a TileDB-SOMA experiment; None for RNA, or the only one.
      obs_filter: of a TileDB-SOMA experiment, which cells are read, in SOMA's own words, such as
        'is_primary_data == True and tissue == "blood"'; None for all.
      organism: of a Census, such as "homo_sapiens"; None for the only one.
      limits: of memory, and of the time in which a damaged file is recognised; they change nothing
        in the result.
    """

    counts_layer: str | None = None
    gene_column: str | None = None
    symbols: str = "mapping"
    compute_totals: bool = False
    fractional: str | None = None
    measurement: str | None = None
    obs_filter: str | None = None
    organism: str | None = None
    limits: ReadLimits = DEFAULT_LIMITS

    def __post_init__(self):
        for name in ("counts_layer", "gene_column", *SOMA_OPTIONS):
            value = getattr(self, name)
            if not (value is None or isinstance(value, str)):
                raise InputError(f"`{name}` is {value!r}, but is a text (None for the usual one)")
        if self.symbols not in SYMBOL_POLICIES:
            raise InputError(f"`symbols` is {self.symbols!r}; give {', '.join(SYMBOL_POLICIES)}")
        if not isinstance(self.compute_totals, bool):
            raise InputError(f"`compute_totals` is {self.compute_totals!r}; give True or False")
        if self.fractional not in (None, *FRACTIONAL_POLICIES):
            listed = " or ".join(FRACTIONAL_POLICIES)
            raise InputError(f"`fractional` is {self.fractional!r}; give {listed}")

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, object]) -> "CountOptions":
        """Takes the arguments of a function that accepts `CountArguments`.

        Raises:
          InputError: an argument has another name or type.
        """
        known = CountArguments.__annotations__
        for name in arguments:
            if name == "layer":
                raise InputError(f"`layer` is no argument: {MEANT_BY_LAYER}")
            if name not in known:
                raise InputError(
                    f"`{name}` is no argument{did_you_mean(name, known)}; counts are read by: "
                    f"{', '.join(known)}"
                )
        return cls(**arguments)

    def of_sound_files(self) -> "CountOptions":
        """The same for files that have been read before; see `ReadLimits.known_sound`."""
        return replace(self, limits=replace(self.limits, known_sound=True))

    def identity(self) -> dict[str, object]:
        """All that changes what is read, for work that is continued later."""
        values = {name: getattr(self, name) for name in CountArguments.__annotations__}
        # Work that was begun before there were these goes on.
        return {n: value for n, value in values.items() if n not in SOMA_OPTIONS or value}

    def changed(self) -> list[str]:
        """Names of the options that are not the default."""
        identity, usual = self.identity(), CountOptions().identity()
        return [name for name, value in identity.items() if value != usual.get(name)]


DEFAULT_OPTIONS = CountOptions()
