"""How a cluster is divided among workers, from what Ray says of its machines."""

import os
import sys
from types import SimpleNamespace

import pytest

from geneformer_jax.cluster.workers import Keeper, size_workers
from geneformer_jax.common.errors import InputError


def cluster(*machines: tuple[int, int], lost: tuple[int, int] = (64, 8)) -> SimpleNamespace:
    """Ray of machines with (cores, GPUs), and of one that was lost."""
    nodes = [{"Alive": True, "Resources": {"CPU": c, "GPU": g}} for c, g in machines]
    nodes += [{"Alive": True, "Resources": {}}]
    nodes += [{"Alive": False, "Resources": {"CPU": lost[0], "GPU": lost[1]}}]
    return SimpleNamespace(nodes=lambda: nodes)


@pytest.mark.parametrize(
    ("machines", "asked", "keep_model", "expected"),
    [
        # One core each, for what needs no model; GPUs are left alone.
        ([(4, 0), (8, 2)], None, False, (12, 1, 0)),
        ([(8, 0), (8, 0)], 4, False, (4, 4, 0)),
        ([(2, 0)], 3, False, (3, 1, 0)),
        # A machine each, or a GPU each with its share of the cores; machines without are left out.
        ([(8, 0), (8, 0)], None, True, (2, 8, 0)),
        ([(16, 4), (64, 0)], None, True, (4, 4, 1)),
        ([(16, 4), (16, 4)], 4, True, (4, 8, 1)),
        # A cluster that grows when it is asked to.
        ([], 10, True, (10, 1, 0)),
    ],
)
def test_workers_have_cores_and_gpus(machines, asked, keep_model, expected):
    assert size_workers(cluster(*machines), asked, keep_model) == expected


def test_a_cluster_without_cores_asks_how_many_workers():
    with pytest.raises(InputError, match="`workers`"):
        size_workers(cluster(), None, False)


@pytest.mark.parametrize(("given", "seen"), [([3], "3"), ([], "0,1,2,3")])
def test_a_worker_sees_its_own_gpu_where_a_batch_system_shows_all(given, seen, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_gpu_ids=lambda: given))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    Keeper()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
