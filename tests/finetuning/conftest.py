"""Toy cells with a task, for the tests of classification."""

import pytest

from tests.helpers.task_cells import gene_task, toy_gene_labels, toy_task_cells


@pytest.fixture(scope="module")
def toy():
    """(counts, tokens) of toy cells."""
    return toy_task_cells()


@pytest.fixture(scope="module")
def task(toy):
    """Genes of two programs."""
    return gene_task(toy[1], toy_gene_labels())
