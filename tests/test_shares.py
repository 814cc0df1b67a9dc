"""Work cut into shares: all of it once, in runs of about equal cost."""

import numpy as np
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.shares import own_share, require_shares, shares_of


@pytest.mark.parametrize("shares", [1, 2, 3, 7, 400])
def test_every_piece_is_in_one_share_of_about_equal_cost(shares):
    costs = np.random.default_rng(0).lognormal(0, 1, 300)
    runs = [own_share(costs, (index, shares)) for index in range(shares)]
    assert [piece for run in runs for piece in run] == list(range(300))
    assert np.array_equal(shares_of(costs, shares), np.repeat(range(shares), list(map(len, runs))))
    sizes = np.array([costs[run.start : run.stop].sum() for run in runs])
    # At each end half a piece more or less.
    assert (np.abs(sizes - costs.sum() / shares) <= costs.max()).all()


def test_shares_of_different_numbers_that_cover_nothing_in_common_differ():
    costs = np.random.default_rng(1).lognormal(0, 1, 50)
    halves, thirds = ([set(own_share(costs, (i, n))) for i in range(n)] for n in (2, 3))
    assert not halves[0] & thirds[2] and not halves[1] & thirds[0]
    assert halves[0] & thirds[1] and halves[1] & thirds[1]


def test_costs_that_say_nothing_and_no_work_at_all():
    assert own_share(np.zeros(3), (0, 2)) == range(3)
    assert own_share(np.zeros(0), (1, 2)) == range(0)


def test_more_shares_than_cells_are_refused():
    require_shares((1, 2), 2, "cells")
    with pytest.raises(InputError, match=r"`shard` is 0/3, but there are only 2 cells"):
        require_shares((0, 3), 2, "cells")
