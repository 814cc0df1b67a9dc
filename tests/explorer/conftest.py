"""Small results of every kind."""

import pytest

from tests.helpers.results_folder import write_results


@pytest.fixture(scope="session")
def results_folder(tmp_path_factory):
    """Read only."""
    return write_results(tmp_path_factory.mktemp("explorer") / "results")
