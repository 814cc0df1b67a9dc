"""The metadata of the package, as pip reads it."""

import ast
import importlib
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

import geneformer_jax as gf

PROJECT = Path(__file__).resolve().parents[1]
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("extra", METADATA["optional-dependencies"])
def test_no_extra_looks_like_a_version(extra):
    """pip 24.1 to 24.3 compares all extras as versions where one of them is one."""
    with pytest.raises(InvalidVersion):
        Version(extra)


def test_the_extra_for_volta_keeps_to_libraries_that_know_the_chip():
    """CUDA 13 has no sm_70, and cuDNN dropped Volta after 9.10."""
    extra = METADATA["optional-dependencies"]["volta"]
    needed = {each.name: each for each in map(Requirement, extra)}
    assert needed["jax"].extras == {"cuda12"}
    cudnn = needed["nvidia-cudnn-cu12"].specifier
    assert cudnn.contains("9.10.2.21")
    assert not cudnn.contains("9.11.0.98")


def test_every_public_name_is_there_for_programs_and_for_type_checkers():
    """Names are imported when first used; type checkers read the imports that never run."""
    tree = ast.parse(Path(gf.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    checked = {alias.name: node.module for node in block.body for alias in node.names}
    assert {*checked, "__version__"} == set(gf.__all__)
    for name, module in checked.items():
        assert getattr(gf, name) is getattr(importlib.import_module(module), name)


def test_dir_lists_public_names_only():
    assert dir(gf) == sorted(gf.__all__)
    with pytest.raises(AttributeError, match="embed_cell'"):
        _ = gf.embed_cell
