"""What was found, in sentences and one table: the answer that the report begins with."""

import re

import pandas as pd

from geneformer_jax.attention_analysis.api import HeadAttention
from geneformer_jax.attention_analysis.comparisons import MIN_PAIRS
from geneformer_jax.attention_analysis.gene_lists import OTHERS, GeneComparison
from geneformer_jax.attention_analysis.layers import MIN_DIFFERENCE, TOO_FEW, holding
from geneformer_jax.inference.random_control import MODEL, RANDOM

# Nature 2023: a fifth of the 24 heads of the 6-layer model attend transcription factors more.
PAPER_FRACTION = "20 % (5 of 24)"
PAPER_COLUMN = "the paper's model, transcription factors"
_UNTESTED = "not tested"
# Humans have about 1,600, of which samples of blood cells show 600 to 1,000: a list of fewer is a
# selection, of which the paper says nothing.
MIN_FACTORS = 500
_FACTORS = re.compile(r"transcription[\s_-]*factors?|(?<![a-z])tfs?(?![a-z])", re.IGNORECASE)


def preferring(found: HeadAttention) -> pd.DataFrame:
    """Returns the fraction of heads that attend the genes of each list more, by model.

    Columns: list, against, model, genes and others (how many are compared), heads that prefer it,
    pairs of like rank, and heads that prefer it among these. The paper's fraction stands beside
    lists of which it speaks, see `is_of_factors`; without one there is no such column.
    """
    table = pd.DataFrame(
        [
            {**_row(each, model, heads), PAPER_COLUMN: _paper(each)}
            for each in found.comparisons
            for model, heads in heads_of(found, each).groupby("model", sort=False)
        ]
    )
    return table if table[PAPER_COLUMN].any() else table.drop(columns=PAPER_COLUMN)


def heads_of(found: HeadAttention, comparison: GeneComparison) -> pd.DataFrame:
    """Returns the rows of one comparison, of all models."""
    heads = found.heads
    return heads[(heads["list"] == comparison.name) & (heads["against"] == comparison.against)]


def _row(comparison: GeneComparison, model: str, heads: pd.DataFrame) -> dict[str, object]:
    return {
        "list": comparison.name,
        "against": comparison.against,
        "model": model,
        "genes": heads["n_first"].iloc[0],
        "others": heads["n_second"].iloc[0],
        "heads that prefer it": _fraction(heads, ""),
        "pairs of like rank": heads["n_matched"].iloc[0],
        "heads that prefer it, of like rank": _fraction(heads, "_matched"),
    }


def _fraction(heads: pd.DataFrame, suffix: str) -> str:
    if heads[f"p{suffix}"].isna().all():
        return _UNTESTED
    prefers = heads[f"prefers{suffix}"]
    return f"{prefers.mean():.0%} ({prefers.sum()} of {len(prefers)})"


def is_of_factors(comparison: GeneComparison) -> bool:
    """Whether a list is plainly of transcription factors, compared with all other genes.

    Its name must say so ("TF", "TFs", "transcription factors"), and the cells must have 500 or more
    of its genes.
    """
    says_so = _FACTORS.search(comparison.name) is not None
    is_whole = len(comparison.first) >= MIN_FACTORS
    return comparison.against == OTHERS and says_so and is_whole


def _paper(comparison: GeneComparison) -> str:
    return PAPER_FRACTION if is_of_factors(comparison) else ""


def answers(found: HeadAttention) -> list[str]:
    """Returns what was found as lines: gene lists, the paper's statements."""
    return [*_about_lists(found), *_about_statements(found)]


def _about_lists(found: HeadAttention) -> list[str]:
    lines = []
    for (name, against), rows in preferring(found).groupby(["list", "against"], sort=False):
        said = "; ".join(map(_of_model, rows.to_dict("records")))
        lines.append(f"heads that attend {name} more than {against} of like rank: {said}")
    return lines


def _of_model(row: dict[str, object]) -> str:
    said, pairs = row["heads that prefer it, of like rank"], row["pairs of like rank"]
    needed = f" ({pairs} pairs of like rank, {MIN_PAIRS} are needed)" if said == _UNTESTED else ""
    return f"{row['model']} {said}{needed}"


def _about_statements(found: HeadAttention) -> list[str]:
    """Names the paper's statements that hold for the model, and for random weights."""
    if (found.statements[MODEL] == TOO_FEW).all():
        return [f"the paper's statements about layers: {TOO_FEW}"]
    held = {name: holding(found.statements, name) for name in found.sums}
    lines = [
        f"the paper's statements that hold for {'the model' if name == MODEL else name}, by more "
        f"than {MIN_DIFFERENCE:g}: {'; '.join(texts) or 'none'}"
        for name, texts in held.items()
    ]
    if RANDOM not in held:
        return [*lines, "random weights were not asked (see `control`): they may show the same"]
    shared = [text for text in held[MODEL] if text in held[RANDOM]]
    learned = f"random weights show this too, so it was not learned: {'; '.join(shared)}"
    return [*lines, learned] if shared else lines
