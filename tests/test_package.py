"""The metadata of the package, as pip reads it."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

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
