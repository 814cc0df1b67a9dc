"""What is said of what was found, of tables that are made up."""

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.attention_analysis.api import HeadAttention
from geneformer_jax.attention_analysis.gene_lists import OTHERS, GeneComparison
from geneformer_jax.attention_analysis.layers import FAILS, HOLDS, STATEMENTS, TOO_FEW, UNDECIDED
from geneformer_jax.attention_analysis.summary import (
    PAPER_COLUMN,
    PAPER_FRACTION,
    answers,
    is_of_factors,
    preferring,
)

MODELS = ("model", "random weights")
EARLY, MIDDLE, LAST = (each.text for each in STATEMENTS)


def compared(name: str, genes: int = 700, against: str = OTHERS) -> GeneComparison:
    """A list of which some genes are in the cells."""
    return GeneComparison(name, against, np.arange(genes), np.arange(900, 990), (), (), 10)


def heads_of(comparison: GeneComparison, model: str, prefers: int, pairs: int) -> pd.DataFrame:
    """Four heads; `prefers` of them prefer the list, and one fewer among genes of like rank."""
    head = np.arange(4)
    return pd.DataFrame(
        {
            "model": model,
            "list": comparison.name,
            "against": comparison.against,
            "layer": 1,
            "head": head + 1,
            "n_first": 40,
            "n_second": 40,
            "p": 0.01,
            "prefers": head < prefers,
            "n_matched": pairs,
            "p_matched": 0.01 if pairs > 2 else np.nan,
            "prefers_matched": (head < prefers - 1) & (pairs > 2),
        }
    )


def found_of(comparisons, statements, pairs=30) -> HeadAttention:
    verdicts = pd.DataFrame({"statement": [EARLY, MIDDLE, LAST], **statements})
    rows = [
        heads_of(each, model, prefers, pairs)
        for each in comparisons
        for model, prefers in zip(statements, (3, 1), strict=False)
    ]
    empty = dict.fromkeys(("ranks", "layers", "thirds", "groups", "pairs"), pd.DataFrame())
    return HeadAttention(
        heads=pd.concat(rows),
        statements=verdicts,
        comparisons=comparisons,
        sums=dict.fromkeys(statements),
        group_names=(),
        skipped_groups={},
        **empty,
    )


def test_statements_are_named_for_the_model_and_for_random_weights():
    verdicts = [HOLDS, UNDECIDED, HOLDS], [HOLDS, HOLDS, FAILS]
    lines = answers(found_of([compared("mine")], dict(zip(MODELS, verdicts, strict=True))))
    said = "\n".join(lines)
    assert f"hold for the model, by more than 0.02: {EARLY}; {LAST}\n" in said
    assert f"hold for random weights, by more than 0.02: {EARLY}; {MIDDLE}\n" in said
    assert lines[-1] == f"random weights show this too, so it was not learned: {EARLY}"


def test_what_holds_for_random_weights_alone_is_no_warning():
    verdicts = [HOLDS, UNDECIDED, FAILS], [FAILS, HOLDS, FAILS]
    said = "\n".join(answers(found_of([compared("m")], dict(zip(MODELS, verdicts, strict=True)))))
    assert f"hold for the model, by more than 0.02: {EARLY}\n" in said
    assert "not learned" not in said
    none = "\n".join(answers(found_of([compared("m")], {"model": [FAILS] * 3})))
    assert "hold for the model, by more than 0.02: none" in none
    assert "random weights were not asked (see `control`)" in none
    shallow = answers(found_of([compared("m")], {"model": [TOO_FEW] * 3}))
    assert shallow[-1] == "the paper's statements about layers: needs 3 layers or more"


def test_lists_are_answered_of_like_rank():
    found = found_of([compared("mine")], dict.fromkeys(MODELS, [FAILS] * 3))
    lines = answers(found)
    assert lines[0] == (
        "heads that attend mine more than other genes of like rank: "
        "model 50% (2 of 4); random weights 0% (0 of 4)"
    )
    few = found_of([compared("mine")], {"model": [FAILS] * 3}, pairs=2)
    assert "model not tested (2 pairs of like rank, 4 are needed)" in answers(few)[0]


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        (compared("lambert2018_TF_names_v_1.01"), True),
        (compared("human-TFs"), True),
        (compared("Transcription factors"), True),
        (compared("dosage_sensitivity_TFs", 122), False),
        (compared("TFs", 700, "housekeeping"), False),
        (compared("housekeeping"), False),
        (compared("outfits"), False),
    ],
)
def test_the_paper_stands_beside_lists_of_transcription_factors_only(comparison, expected):
    assert is_of_factors(comparison) == expected
    table = preferring(found_of([comparison, compared("mine")], {"model": [FAILS] * 3}))
    assert (PAPER_COLUMN in table) == expected
    if expected:
        assert table[PAPER_COLUMN].tolist() == [PAPER_FRACTION, ""]
