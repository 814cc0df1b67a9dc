"""The flags of commands that read counts: files, quality control, exclusions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from geneformer_jax.common.command_line import list_flag
from geneformer_jax.common.errors import InputError

if TYPE_CHECKING:
    from geneformer_jax.cells.counts.options import CountArguments, CountOptions
    from geneformer_jax.cells.tokenization.quality_control import QualityRules

# Flags defined here belong to the command that asks for them, and appear in its --help.
flags.disclaim_key_flags()


def define_count_flags() -> None:
    """Defines the flags of a command that reads counts: which files, which matrix, which cells."""
    flags.DEFINE_string("counts", "", "Raw counts: files, folders or globs, separated by commas.")
    list_flag("counts")
    _define_matrix_flags()
    flags.DEFINE_string("filter_column", "", "Keep only cells whose value in this obs column is 1.")
    flags.DEFINE_multi_string("exclude", [], "column=value: leave such cells out.")
    flags.DEFINE_enum(
        "quality", "none", ("none", "paper"), "paper: total counts and mitochondrial fraction "
        "within 3 standard deviations of the file's mean, and at least 7 genes; none: all cells.",
    )  # fmt: skip
    help_sd = "Largest distance from the mean of %s, in s.d.; 0: no such rule. Default: --quality."
    flags.DEFINE_float("total_sd", None, help_sd % "total counts", lower_bound=0)
    flags.DEFINE_float("mitochondrial_sd", None, help_sd % "mitochondrial fraction", lower_bound=0)
    flags.DEFINE_integer(
        "min_genes", None, "Minimal number of genes per cell; 0: no such rule. Default: --quality.",
        lower_bound=0,
    )  # fmt: skip


def define_reading_flags() -> None:
    """Defines the flags of a command that may be given counts for a model: how they are read."""
    _define_matrix_flags()
    define_symbols_flag()


def define_symbols_flag() -> None:
    """Defines the flag of a command that looks up genes in a vocabulary."""
    flags.DEFINE_enum(
        "symbols", "mapping", ("mapping", "names", "never"), "Where ids that are no Ensembl ids "
        "are looked up: the vocabulary's mapping (as the original), also its gene names, or never.",
    )  # fmt: skip


def _define_matrix_flags() -> None:
    flags.DEFINE_string(
        "counts_layer", "", "Matrix with the raw counts: X, raw, a layer, or a sum of layers, such "
        "as spliced+unspliced. If empty, X, or else the one that holds raw counts.",
    )  # fmt: skip
    flags.DEFINE_string(
        "gene_column", "", "Column with the gene ids, or index; if empty, found by what it holds."
    )
    flags.DEFINE_string(
        "obs_filter", "", "Of TileDB-SOMA: which cells are read, in its own words, such as "
        "'is_primary_data == True and tissue == \"blood\"'.",
    )  # fmt: skip
    flags.DEFINE_string(
        "measurement", "", "Of TileDB-SOMA: the measurement; if empty, RNA or the only one."
    )
    flags.DEFINE_string(
        "organism", "", "Of a Census: the organism, such as homo_sapiens; if empty, the only one."
    )
    flags.DEFINE_bool(
        "compute_totals", False, "Compute the cells' totals, although the file states n_counts."
    )
    flags.DEFINE_enum(
        "fractional", None, ("round", "keep"), "Take estimated counts, which need not be whole: "
        "round them, or keep (and rank) them as they are. Without it they are refused.",
    )  # fmt: skip


def reading_options() -> "CountOptions":
    """Returns what the flags of `define_reading_flags` ask for."""
    from geneformer_jax.cells.counts.options import CountOptions

    return CountOptions.from_arguments(reading_arguments())


def reading_arguments() -> "CountArguments":
    """Returns the same as arguments of a function that takes counts."""
    from geneformer_jax.cells.counts.options import CountArguments

    given = [name for name in CountArguments.__annotations__ if name in flags.FLAGS]
    values = {name: flags.FLAGS[name].value for name in given}
    return {name: value for name, value in values.items() if value != ""}


def quality_rules() -> "QualityRules":
    """Returns the rules that the flags of `define_count_flags` ask for."""
    from geneformer_jax.cells.tokenization.quality_control import QualityRules

    values = flags.FLAGS
    paper = QualityRules()
    chosen = {}
    for name in ("total_sd", "mitochondrial_sd", "min_genes"):
        default = getattr(paper, name) if values.quality == "paper" else None
        chosen[name] = default if values[name].value is None else values[name].value or None
    return QualityRules(
        filter_column=values.filter_column or None,
        exclude=parse_exclusions(values.exclude),
        **chosen,
    )


def parse_exclusions(values: Sequence[str]) -> dict[str, list[str]]:
    """Reads "column=value" texts into column -> values.

    Raises:
      InputError: a text has another form.
    """
    result: dict[str, list[str]] = {}
    for text in values:
        column, separator, value = text.partition("=")
        if not separator or not column.strip():
            raise InputError(f'--exclude="{text}" must have the form column=value')
        result.setdefault(column.strip(), []).append(value.strip())
    return result
