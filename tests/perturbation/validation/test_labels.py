"""Labels of screens as people write them, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.perturbation.validation.screen.labels import (
    COMBINED,
    CONTROLS,
    LEFT_OUT,
    NO_LABEL,
    UNKNOWN,
    Screen,
    describe_screen,
    read_screen,
)

GENES = {"CD74": 1, "KLF1": 2, "NT5E": 3, "HLA-A": 4, "ENSG00000019582": 1}


def find(names):
    return [GENES.get(name.upper()) for name in names]


def screen_of(labels: dict, control: str = "ctrl", min_cells: int = 4) -> Screen:
    values = [label for label, cells in labels.items() for _ in range(cells)]
    return read_screen(pd.DataFrame({"gene": values}), "gene", control, find, min_cells)


def test_each_gene_is_found_however_it_is_written():
    labels = {"ctrl": 9, "cd74": 4, "ENSG00000019582": 5, "KLF1+ctrl": 4, "ctrl+KLF1": 6,
              "NT5E_g2": 2, "sgNT5E-1": 2, "hla-a": 8}  # fmt: skip
    screen = screen_of(labels)
    # The commonest label of a gene names it.
    found = dict(zip(screen.names, screen.genes, strict=True))
    assert found == {"ENSG00000019582": 1, "NT5E_g2": 3, "ctrl+KLF1": 2, "hla-a": 4}
    assert screen.cells.tolist() == [9, 4, 10, 8]
    assert screen.controls == 9 and screen.left_out == ()
    assert (screen.groups[:9] == CONTROLS).all()


def test_what_cannot_be_validated_is_left_out_with_its_reason():
    labels = {"ctrl": 5, "CD74": 5, "KLF1": 5, "CD74+KLF1": 6, "CD74_HLA-A": 4, "DOX": 7, None: 3,
              "NT5E": 2}  # fmt: skip
    screen = screen_of(labels)
    assert screen.names == ("CD74", "KLF1")
    left = {each["perturbation"]: (each["cells"], each["reason"]) for each in screen.left_out}
    assert left == {
        "CD74+KLF1": (6, COMBINED),
        "CD74_HLA-A": (4, COMBINED),
        "DOX": (7, UNKNOWN),
        "": (3, NO_LABEL),
        "NT5E": (2, "fewer than 4 cells"),
    }
    assert (screen.groups == LEFT_OUT).sum() == 22
    told = "\n".join(describe_screen(screen))
    assert "2 perturbations of 10 cells, 5 control cells" in told
    assert "several genes at once: 2 (CD74+KLF1, CD74_HLA-A)" in told


@pytest.mark.parametrize("control", ["NT1|NT2", "NT1"])
def test_controls_may_have_several_labels(control):
    screen = screen_of({"NT1": 5, "NT2": 6, "CD74": 4, "KLF1": 4}, control)
    assert screen.controls == (11 if "|" in control else 5)


@pytest.mark.parametrize(
    ("labels", "control", "words"),
    [
        ({"ctrl": 9, "CD74": 9}, "contrl", 'no value "contrl" (did you mean "ctrl"?)'),
        ({"non-targeting": 9, "CD74": 9}, "NT", 'it has "non-targeting", a usual name of controls'),
        ({"non-targeting": 9, "CD74": 9}, "NT", "by `control`"),
        ({"ctrl": 3, "CD74": 9, "KLF1": 9}, "ctrl", "has 3 control cells"),
        ({"ctrl": 9, "CD74": 1, "KLF1": 1}, "ctrl", "fewer than 4 cells): the largest has 1"),
        ({"ctrl": 9, "a": 9, "b": 9, "CD74": 9}, "ctrl", 'such as "a" (names no known gene)'),
        ({"ctrl": 9, "CD74+KLF1": 9}, "ctrl", "give cells in which one gene is perturbed"),
        ({"ctrl": 9, "CD74": 9}, "ctrl", 'needs 2 perturbations, but column "gene" has 1'),
        ({0: 9, 1: 9, 2: 9}, "0", "label cells by gene symbols"),
        ({0: 9, 1: 9}, "ctrl", "holds numbers"),
    ],
)
def test_what_no_screen_can_be_made_of_is_refused(labels, control, words):
    with pytest.raises(InputError) as told:
        screen_of(labels, control)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_a_missing_column_is_named():
    with pytest.raises(InputError, match="no obs column"):
        read_screen(pd.DataFrame({"gene": []}), "target", "ctrl", find, 4)


def test_categories_without_cells_count_nothing():
    values = ["ctrl"] * 5 + ["CD74"] * 5 + ["KLF1"] * 5
    obs = pd.DataFrame({"gene": pd.Categorical(values, [*set(values), "HLA-A", "unused"])})
    screen = read_screen(obs, "gene", "ctrl", find, 4)
    assert screen.left_out == () and np.bincount(screen.groups + 2).tolist() == [0, 5, 5, 5]
