"""Damaged files of every kind are read right or refused in one line; `inputs` tells the figures."""

import pytest

from tests.campaigns.inputs import FINE, run_cases
from tests.campaigns.readers import GROUPS, readers_of
from tests.campaigns.reading import damaged_copy, outcome

CASES = 1000
QUICK = {
    "counts": ("h5ad csr", "zarr 3 csr", "loom", "10x h5 version 3", "10x mtx version 3 gz"),
    "cells": ("store", "parquet", "dictionaries", "vocabulary"),
    "models": ("safetensors", "torch bin"),
    "tables": ("state embeddings", "configuration"),
}
QUICK_CASES = 4


# Libraries warn of what is odd in a file before they refuse it.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", GROUPS)
def test_a_few_damaged_files_of_each_kind(group, tmp_path):
    for name in QUICK[group]:
        reader = readers_of(group)[name]
        (tmp_path / name).mkdir()
        original = reader.write(tmp_path / name)
        whole = reader.read(original)
        for case in range(QUICK_CASES):
            path, damage = damaged_copy(original, tmp_path / "case", f"{name}/quick/{case}")
            verdict, message = outcome(reader, path, whole)
            assert verdict in FINE, f"{name}/quick/{case}: {damage}: {message}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in GROUPS for name in readers_of(group)]
)
def test_damaged_files(group, name, tmp_path):
    """No traceback, crash, hang, absurd memory, wrong count or silent change of what is sealed."""
    lines = list(run_cases(group, name, CASES, seed=0, folder=tmp_path))
    assert len(lines) == CASES
    assert [line for line in lines if line["verdict"] not in FINE] == []
    refused = sum(line["verdict"] == "refused" for line in lines)
    assert CASES // 10 < refused < CASES
