"""What a screen's file says of itself before work begins, wherever its counts are."""

import pytest

from geneformer_jax.cells.counts.options import CountOptions
from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.counts import open_source
from geneformer_jax.perturbation.validation.config import ValidationOptions
from geneformer_jax.perturbation.validation.screen.screen_file import require_screen
from tests.helpers.soma_files import require_tiledbsoma, write_experiment
from tests.helpers.toy_screens import CONTROL, toy_screen


def test_an_experiment_of_soma_is_a_screen_and_so_are_some_of_its_cells(tmp_path):
    require_tiledbsoma()
    cells = toy_screen()
    path = f"soma://{write_experiment(tmp_path / 'experiment', cells)}"
    options = ValidationOptions(perturbation="target", control=CONTROL)
    require_screen(path, options, CountOptions())
    assert open_source(path, {}).n_cells == len(cells)
    others = CountOptions(obs_filter=f'target != "{CONTROL}"')
    with pytest.raises(InputError, match=f'column "target" has no value "{CONTROL}"'):
        require_screen(path, options, others)
