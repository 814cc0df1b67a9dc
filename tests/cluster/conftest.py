"""Where tests of the engine find Ray."""

import os
from importlib.util import find_spec

import pytest


@pytest.fixture(scope="session")
def needs_ray() -> None:
    """Skips tests where Ray is missing; fails in CI, as the test extra has it."""
    if find_spec("ray"):
        return
    reason = 'no Ray: install the ray extra, pip install "geneformer_jax[ray]"'
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
