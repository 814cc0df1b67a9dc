"""What the doors of this room take alike: files, quality control, exclusions, tables, shares."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from geneformer_jax.cells.tokenization.gene_ids import strip_version
from geneformer_jax.cells.tokenization.quality_control import QualityRules
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.tables import read_table

# Flags defined here belong to the door that asks for them, and appear in its --help.
flags.disclaim_key_flags()


def define_count_flags() -> None:
    """Defines the flags of a door that reads counts: which files, which matrix, which cells."""
    flags.DEFINE_string("counts", "", "Raw counts: files, folders or globs, separated by commas.")
    flags.DEFINE_string("layer", "", 'Matrix with the raw counts; "" for the main one, or "raw".')
    flags.DEFINE_string("gene_column", "", "Column with the gene ids; found by itself if empty.")
    flags.DEFINE_string("filter_column", "", "Keep only cells whose value in this obs column is 1.")
    flags.DEFINE_multi_string("exclude", [], "column=value: leave such cells out; may be repeated.")
    flags.DEFINE_enum(
        "quality", "none", ("none", "paper"), "paper: total counts and mitochondrial share within "
        "3 standard deviations of the file's mean, and at least 7 genes; none: keep all cells.",
    )  # fmt: skip
    help_sd = "Most standard deviations from the mean of %s; 0: no such rule. Default: --quality."
    flags.DEFINE_float("total_sd", None, help_sd % "total counts", lower_bound=0)
    flags.DEFINE_float("mitochondrial_sd", None, help_sd % "mitochondrial share", lower_bound=0)
    flags.DEFINE_integer(
        "min_genes", None, "Fewest genes per cell; 0: no such rule. Default: --quality.",
        lower_bound=0,
    )  # fmt: skip


def quality_rules() -> QualityRules:
    """The rules that the flags of `define_count_flags` ask for."""
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


def read_orthologs(path: Path | str) -> dict[str, str]:
    """Reads a table whose first two columns are a gene id and its ortholog in the vocabulary.

    A gene with several orthologs has none here, for its counts cannot be divided among them;
    several genes with the same ortholog are kept, and their counts are summed.

    Returns:
      Gene id in upper case, without version -> ortholog; "" for a gene with several.

    Raises:
      InputError: the table has fewer than two columns, or no pair.
    """
    table = read_table(path)
    if table.shape[1] < 2:
        raise InputError(
            f"{path} has {table.shape[1]} column; an ortholog table needs two, a gene id and its "
            "ortholog, separated by tabs (.csv: by commas)"
        )
    pairs = table.iloc[:, :2].set_axis(["gene", "ortholog"], axis=1)
    pairs = pairs.map(strip_version)
    pairs["gene"] = pairs["gene"].str.upper()
    pairs = pairs[(pairs["gene"] != "") & (pairs["ortholog"] != "")].drop_duplicates()
    pairs.loc[pairs["gene"].duplicated(keep=False), "ortholog"] = ""
    if not (pairs["ortholog"] != "").any():
        raise InputError(f"{path} has no gene with exactly one ortholog; check its two columns")
    return dict(zip(pairs["gene"], pairs["ortholog"], strict=True))
