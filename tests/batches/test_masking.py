"""Masking: its fractions, what it never touches, and on what it depends."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from geneformer_jax.batches.config import MaskingConfig
from geneformer_jax.batches.loader import pack_cells
from geneformer_jax.batches.masking import mask_cells, masked_capacity
from geneformer_jax.cells.tokenization.vocabulary import V2_SPECIAL_TOKENS
from geneformer_jax.common.errors import InputError
from tests.helpers.toy import toy_vocabulary

MASKING = {"config": MaskingConfig(), "vocabulary": toy_vocabulary(V2_SPECIAL_TOKENS, genes=996)}


def cells(B: int = 400, T: int = 256, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths_B = rng.integers(1, T + 1, B)
    tokens_BT = rng.integers(4, 1_000, (B, T)).astype(np.int32)
    tokens_BT[np.arange(T) >= lengths_B[:, None]] = 0
    return tokens_BT, lengths_B, np.arange(B)


def on_device(tokens_BT, lengths_B, cells_B, *, seed, step, config, vocabulary, **more):
    """As mask_cells, within a jitted step."""
    mask = functools.partial(mask_cells, seed=seed, config=config, vocabulary=vocabulary)
    return jax.device_get(jax.jit(mask)(tokens_BT, lengths_B, cells_B, step=step, **more))


WHERE = pytest.mark.parametrize("mask", [mask_cells, on_device], ids=["host", "device"])


def test_targets_restore_the_cell():
    tokens_BT, lengths_B, cells_B = cells()
    masked = mask_cells(tokens_BT, lengths_B, cells_B, seed=1, step=2, **MASKING)
    restored_BT = masked.tokens_BT.copy()
    rows, slots = np.nonzero(masked.weights_BM)
    positions = masked.positions_BM[rows, slots]
    restored_BT[rows, positions] = masked.targets_BM[rows, slots]
    np.testing.assert_array_equal(restored_BT, tokens_BT)
    assert len(set(zip(rows, positions, strict=True))) == len(rows), "no position twice"
    assert (positions < lengths_B[rows]).all(), "padding is never selected"


@WHERE
def test_fractions_are_those_asked_for(mask):
    tokens_BT, lengths_B, cells_B = cells(2_000)
    masked = mask(tokens_BT, lengths_B, cells_B, seed=0, step=0, **MASKING)
    chosen = masked.weights_BM > 0
    was = masked.targets_BM[chosen]
    now = np.take_along_axis(masked.tokens_BT, masked.positions_BM, axis=1)[chosen]
    n = chosen.sum()
    assert n / lengths_B.sum() == pytest.approx(0.15, abs=4 * 0.36 / lengths_B.sum() ** 0.5)
    assert (now == 1).mean() == pytest.approx(0.8, abs=4 * 0.4 / n**0.5)
    assert (now == was).mean() == pytest.approx(0.1 + 0.1 / 996, abs=4 * 0.3 / n**0.5)


@WHERE
def test_random_replacements_are_genes_unless_the_originals_rule_is_asked_for(mask):
    tokens_BT, lengths_B, cells_B = cells(2_000)
    genes = MaskingConfig(mask_fraction=0.0, random_fraction=1.0)
    original = dataclasses.replace(genes, random_special_tokens=True)
    small = toy_vocabulary(V2_SPECIAL_TOKENS, genes=4)
    tokens_BT = np.minimum(tokens_BT, 7)
    for config, expected in ((genes, {4, 5, 6, 7}), (original, set(range(8)))):
        masked = mask(
            tokens_BT, lengths_B, cells_B, seed=0, step=0, config=config, vocabulary=small
        )
        now = np.take_along_axis(masked.tokens_BT, masked.positions_BM, axis=1)
        drawn = np.bincount(now[masked.weights_BM > 0], minlength=8)
        assert set(np.flatnonzero(drawn).tolist()) == expected
        fraction = 1 / len(expected)
        bound = 5 * (fraction / drawn.sum()) ** 0.5
        np.testing.assert_allclose(drawn[sorted(expected)] / drawn.sum(), fraction, atol=bound)


def test_padding_and_masks_are_never_selected_but_other_special_tokens_are():
    tokens_BT, lengths_B, cells_B = cells()
    tokens_BT[:, :3] = [0, 1, 2]
    masked = mask_cells(tokens_BT, lengths_B, cells_B, seed=0, step=0, **MASKING)
    selected = set(masked.targets_BM[masked.weights_BM > 0].tolist())
    assert not selected & {0, 1}
    assert 2 in selected


def test_a_cells_masks_depend_on_seed_step_and_cell_alone():
    tokens_BT, lengths_B, cells_B = cells(32)

    def masked(rows, seed=7, step=9, cells_B=cells_B):
        return mask_cells(
            tokens_BT[rows], lengths_B[rows], cells_B[rows], seed=seed, step=step, **MASKING
        ).tokens_BT

    whole = masked(np.arange(32))
    order = np.random.default_rng(0).permutation(32)
    np.testing.assert_array_equal(masked(order), whole[order])
    np.testing.assert_array_equal(masked(np.arange(5, 9)), whole[5:9])
    for other in ({"seed": 8}, {"step": 10}, {"cells_B": cells_B + 1}):
        assert not np.array_equal(masked(np.arange(32), **other), whole)


def test_the_device_masks_as_the_host_does():
    arguments = cells(64)
    for seed, step in ((0, 0), (7, 12_345)):
        expected = mask_cells(*arguments, seed=seed, step=step, **MASKING)
        masked = on_device(*arguments, seed=seed, step=step, **MASKING)
        for name, values in expected._asdict().items():
            np.testing.assert_array_equal(getattr(masked, name), values)
            assert getattr(masked, name).dtype == values.dtype, name


def test_masks_on_the_device_depend_on_neither_mesh_nor_order():
    arguments = cells(64)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor"))
    split = jax.device_put(arguments, NamedSharding(mesh, PartitionSpec("data")))
    expected = mask_cells(*arguments, seed=1, step=2, **MASKING)
    spread = on_device(*split, seed=1, step=2, **MASKING)
    order = np.random.default_rng(0).permutation(64)
    shuffled = on_device(*(rows[order] for rows in arguments), seed=1, step=2, **MASKING)
    for whole, other, reordered in zip(expected, spread, shuffled, strict=True):
        np.testing.assert_array_equal(other, whole)
        np.testing.assert_array_equal(reordered, whole[order])


@WHERE
def test_a_cell_is_masked_the_same_in_a_packed_row(mask):
    tokens_BT, lengths_B, cells_B = cells(12, T=64)
    cells_B += 100
    alone = mask_cells(tokens_BT, lengths_B, cells_B, seed=1, step=2, **MASKING)
    rows = np.array([0, 0, 0, 1, 1, 1, 1, 1, 3, 3, 3, 3])
    ragged = [row[:length] for row, length in zip(tokens_BT, lengths_B, strict=True)]
    packed_BT, packed_lengths_B, packing = pack_cells(ragged, rows, (4, 512), pad_token=0)
    cells_BC = np.full((4, 5), -1)
    for row in (0, 1, 3):
        cells_BC[row, : (rows == row).sum()] = cells_B[rows == row]
    packed = mask(packed_BT, packed_lengths_B, cells_BC, seed=1, step=2, **MASKING, packing=packing)
    assert packed.weights_BM.sum() == alone.weights_BM.sum() > 30
    for row in (0, 1, 3):
        order = np.flatnonzero(rows == row)
        together = np.concatenate([alone.tokens_BT[i, : lengths_B[i]] for i in order])
        np.testing.assert_array_equal(packed.tokens_BT[row, : len(together)], together)
        chosen = packed.weights_BM[row] > 0
        targets = np.concatenate([alone.targets_BM[i][alone.weights_BM[i] > 0] for i in order])
        np.testing.assert_array_equal(packed.targets_BM[row, chosen], targets)
        positions = packed.positions_BM[row, chosen]
        np.testing.assert_array_equal(packed_BT[row, positions], targets)
    assert not packed.weights_BM[2].any()


def test_capacity_holds_nearly_every_draw_and_more_is_left_unmasked():
    rng = np.random.default_rng(0)
    for T in (64, 512, 2_048):
        drawn = rng.binomial(T, 0.15, 100_000)
        assert (drawn > masked_capacity(T)).mean() < 1e-4
        assert masked_capacity(T) < 0.6 * T
    T = 16
    tokens_BT = np.full((4_000, T), 5, np.int32)
    masked = mask_cells(tokens_BT, np.full(4_000, T), np.arange(4_000), seed=0, step=0, **MASKING)
    assert masked.positions_BM.shape == (4_000, masked_capacity(T))
    changed = (masked.tokens_BT != 5).sum(axis=1)
    assert (changed <= masked.weights_BM.sum(axis=1)).all()


def test_fractions_that_cannot_be_are_refused():
    for changes in ({"selected_fraction": 0.0}, {"mask_fraction": 0.95}, {"random_fraction": -0.1}):
        ((name, value),) = changes.items()
        with pytest.raises(InputError, match=f"masking.{name}` is {value}"):
            MaskingConfig(**changes)
