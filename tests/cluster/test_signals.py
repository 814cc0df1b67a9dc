"""A cluster that is ended while it begins: in good order, once it is whole."""

import signal
from types import SimpleNamespace

import pytest

from geneformer_jax.cluster import ray_cluster


class Ended(Exception):
    pass


def end(*_):
    raise Ended


@pytest.fixture
def ray():
    """Ray as far as it takes signals for itself, and then is ended as it begins."""
    fake = SimpleNamespace(_private=SimpleNamespace(utils=SimpleNamespace()), begun=[])
    fake._private.utils.set_sigterm_handler = lambda handler: signal.signal(signal.SIGTERM, handler)

    def init(**_):
        fake.begun.append("head")
        fake._private.utils.set_sigterm_handler(lambda *_: pytest.fail("Ray's own end"))
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        fake.begun.append("workers")

    fake.init = init
    return fake


@pytest.fixture(autouse=True)
def signals_as_before():
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_end_waits_until_ray_has_begun(ray, number):
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end if each == number else lambda *_: None)
    with pytest.raises(Ended):
        ray_cluster._init(ray)
    assert ray.begun == ["head", "workers"]


def test_a_folder_into_which_workers_still_write_is_removed(tmp_path, monkeypatch):
    folder = tmp_path / "ray"
    folder.mkdir()
    real, tries = ray_cluster.shutil.rmtree, []

    def rmtree(path, **how):
        tries.append(path)
        if len(tries) == 2:
            real(path, **how)

    monkeypatch.setattr(ray_cluster.shutil, "rmtree", rmtree)
    ray_cluster._remove(str(folder))
    assert not folder.exists() and len(tries) == 2
