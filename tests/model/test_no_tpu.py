"""What JAX says where the compiler for TPUs is installed and no TPU is there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_compiler_for_tpus_misses_none():
    environment = {name: value for name, value in os.environ.items() if "JAX_" not in name}
    code = "import geneformer_jax.model.sharding, jax; print(jax.devices()[0].platform)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True
    )
    if done.stdout.strip() != "cpu":
        pytest.skip("an accelerator is there")
    assert done.stderr == ""
