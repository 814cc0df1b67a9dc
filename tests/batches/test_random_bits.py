"""Random words: the published generator, the same on host and device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geneformer_jax.batches.random_bits import random_bits, threefry

# Threefry-2x32, 20 rounds, of the known-answer file of its authors' Random123: counter, key, words.
KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_the_generator_gives_its_known_answers(counter, key, expected):
    words = threefry(tuple(map(jnp.uint32, key)), *map(jnp.uint32, counter))
    assert tuple(map(int, words)) == expected


@pytest.mark.parametrize("seed", [0, 42, 2**31 + 5])
def test_host_and_device_draw_the_same_words(seed):
    rng = np.random.default_rng(0)
    cells_BT = rng.integers(-1, 2**31 - 1, (3, 50), dtype=np.int32)
    ranks_BT = rng.integers(0, 4_096, (3, 50), dtype=np.int32)
    on_host = random_bits(seed, 100_000, cells_BT, ranks_BT)
    on_device = jax.jit(lambda *args: random_bits(seed, *args))(100_000, cells_BT, ranks_BT)
    for host, device in zip(on_host, on_device, strict=True):
        np.testing.assert_array_equal(host, device)


def test_words_are_uniform_and_each_input_changes_them():
    cells_BT, ranks_BT = np.divmod(np.arange(40_000, dtype=np.int32).reshape(20, -1), 100)
    first, second = random_bits(3, 4, cells_BT, ranks_BT)
    for words in (first, second):
        assert len(np.unique(words)) > 39_990
        shares = np.bincount(words.reshape(-1) >> np.uint32(28), minlength=16) / words.size
        np.testing.assert_allclose(shares, 1 / 16, atol=5 * (1 / 16 / 40_000) ** 0.5)
    assert abs(np.corrcoef(first.reshape(-1), second.reshape(-1))[0, 1]) < 5 / 200
    for other in ((4, 4, cells_BT, ranks_BT), (3, 5, cells_BT, ranks_BT)):
        assert not (random_bits(*other)[0] == first).any()
