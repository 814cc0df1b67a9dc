"""Groups of cells by an obs column: which are summarised apart, which skipped."""

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.attention_analysis.cell_groups import describe_skipped, group_cells
from geneformer_jax.common.errors import InputError

OBS = pd.DataFrame({"kind": ["B"] * 5 + ["NK"] * 2 + ["T"] * 4 + [None, ""] + ["DC"]})


def test_small_groups_are_skipped_and_named():
    groups = group_cells(OBS, "kind", 4)
    assert groups.names == ("B", "T") and groups.sums == 3
    assert groups.skipped == {"NK": 2, "no value": 2, "DC": 1}
    np.testing.assert_array_equal(groups.codes, [0] * 5 + [2] * 2 + [1] * 4 + [2] * 3)
    said = describe_skipped(groups)
    assert "fewer than `min_cells`=4 cells" in said and said.endswith(
        "NK (2), no value (2), DC (1)"
    )


def test_cells_without_a_value_are_a_group_if_they_are_enough():
    groups = group_cells(OBS, "kind", 2)
    assert groups.names == ("B", "NK", "T", "no value") and groups.skipped == {"DC": 1}
    everyone = group_cells(OBS, "kind", 1)
    assert everyone.sums == len(everyone.names) == 5, "no cell is without a group"
    assert describe_skipped(everyone) == ""


def test_without_a_column_all_cells_are_summed_together():
    groups = group_cells(OBS, None, 10)
    assert groups.names == () and groups.sums == 1 and not groups.codes.any()


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (
            "kind",
            r'no value of column "kind" has the 6 cells .* the most "B" with 5; .*`min_cells`',
        ),
        ("empty", 'no cell has a value in column "empty"'),
        ("kin", 'no obs column "kin"'),
    ],
)
def test_what_leaves_no_group_is_refused(column, words):
    with pytest.raises(InputError, match=words):
        group_cells(OBS.assign(empty=None), column, 6)
