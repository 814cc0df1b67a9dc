"""Views of cells: what they keep, and that nothing but seed, step and cell decides."""

import functools

import jax
import numpy as np
import pytest

from geneformer_jax.batches.config import ViewConfig
from geneformer_jax.batches.loader import Batch, pack_cells, pad_cells
from geneformer_jax.batches.views import draw_views, mean_genes, view_length

CLS, EOS, FIRST_GENE = 2, 3, 4
GENES = np.random.default_rng(0).permutation(np.arange(FIRST_GENE, 400))
SIZES = [8, 9, 30, 57, 64, 100, 124, 17]
DEFAULT = ViewConfig(20, 60)
EVERY = tuple(range(len(SIZES)))


def cells(framed: bool) -> list[np.ndarray]:
    frame = ([CLS], [EOS]) if framed else ([], [])
    return [
        np.concatenate([frame[0], GENES[7 * i : 7 * i + n], frame[1]]).astype(np.int32)
        for i, n in enumerate(SIZES)
    ]


def alone(order=EVERY, framed: bool = True) -> Batch:
    """One cell a row, and an empty row."""
    rows = [cells(framed)[i] for i in order]
    lengths_B = np.array([len(row) for row in rows] + [0], np.int32)
    tokens_BT = np.concatenate([pad_cells(rows, 128, 0), np.zeros((1, 128), np.int32)])
    numbers = np.array([*order, -1], np.int32)
    return Batch(tokens_BT, lengths_B, None, None, None, numbers)


def packed(framed: bool = True) -> Batch:
    """The same cells in rows of 256, three rows with four, four and no cells."""
    rows, cells_BC = np.arange(len(SIZES)) // 4, np.full((3, 4), -1, np.int32)
    cells_BC[:2] = np.arange(len(SIZES)).reshape(2, 4)
    tokens_BT, lengths_B, packing = pack_cells(cells(framed), rows, (3, 512), 0)
    return Batch(tokens_BT, lengths_B, None, None, None, cells_BC, packing)


@functools.partial(jax.jit, static_argnames=("seed", "config"))
def drawn(batch: Batch, seed: int = 5, step: int = 0, config: ViewConfig = DEFAULT) -> Batch:
    return draw_views(
        batch, seed=seed, step=step, config=config, first_gene_token=FIRST_GENE, pad_token=0
    )


def views_of(batch: Batch, **options) -> dict[int, list[int]]:
    """Returns {cell: the tokens of its view}, padding gone."""
    views = jax.device_get(drawn(batch, **options))
    found = {}
    for row, (tokens_T, length) in enumerate(zip(views.tokens_BT, views.lengths_B, strict=True)):
        assert not tokens_T[length:].any()
        if views.packing is None:
            segments_T = (np.arange(len(tokens_T)) < length).astype(int)
        else:
            segments_T = views.packing.segments_BT[row]
        for segment in range(1, segments_T.max(initial=0) + 1):
            cell = int(np.atleast_1d(views.cells_B[row])[segment - 1])
            at = np.flatnonzero(segments_T == segment)
            if views.packing is not None:
                np.testing.assert_array_equal(views.packing.ranks_BT[row, at], range(len(at)))
            found[cell] = tokens_T[at].tolist()
    return found


@pytest.mark.parametrize("framed", [False, True], ids=["v1", "v2"])
def test_a_view_is_a_part_of_the_cell_in_its_order(framed):
    whole = cells(framed)
    found = views_of(alone(framed=framed))
    assert len(found) == len(SIZES)
    for cell, tokens in found.items():
        kept = [token for token in tokens if token >= FIRST_GENE]
        assert min(20, SIZES[cell] // 2) <= len(kept) <= min(60, SIZES[cell])
        places = [whole[cell].tolist().index(token) for token in tokens]
        assert places == sorted(set(places))
        assert (tokens[0], tokens[-1]) == (CLS, EOS) if framed else tokens == kept


def test_views_depend_on_seed_step_and_cell_alone():
    expected = views_of(alone())
    assert views_of(alone([3, 1, 7, 0, 2, 6, 5, 4])) == expected
    assert views_of(packed()) == expected
    for other in (views_of(alone(), seed=6), views_of(alone(), step=1)):
        assert all(other[cell] != expected[cell] for cell in EVERY if SIZES[cell] > 60)


def test_genes_are_kept_evenly_over_ranks_and_numbers_over_their_logarithms():
    genes, rows = 100, 8_000
    tokens_BT = np.broadcast_to(np.arange(4, 104, dtype=np.int32), (rows, genes))
    lengths_B = np.full(rows, genes, np.int32)
    batch = Batch(tokens_BT, lengths_B, None, None, None, np.arange(rows, dtype=np.int32))
    views = jax.device_get(drawn(batch))
    sizes = np.arange(20, 61)
    # How much of the logarithms from 20 to 60 rounds down to each number.
    share = np.diff(np.log(np.clip(np.append(sizes, 61), 20, 60))) / np.log(3)
    counts = np.bincount(views.lengths_B, minlength=61)[20:]
    assert counts.sum() == rows
    np.testing.assert_allclose(counts / counts.sum(), share, atol=5 * 0.0025)
    kept = (share * sizes).sum() / genes
    kept_G = np.bincount(views.tokens_BT[views.tokens_BT > 0] - 4, minlength=genes)
    np.testing.assert_allclose(kept_G / rows, kept, atol=5 * 0.0056)
    neighbours = [set(row[row > 0]) for row in views.tokens_BT[:200]]
    shared = [len(a & b) for a, b in zip(neighbours[::2], neighbours[1::2], strict=True)]
    assert np.mean(shared) == pytest.approx(kept**2 * genes, abs=3), "independent of each other"
    assert mean_genes(np.full(3, genes), DEFAULT) == pytest.approx(kept * genes, abs=0.6)


def test_a_view_does_not_tell_how_many_genes_its_cell_has():
    large = [np.arange(4, 4 + n, dtype=np.int32) for n in (100, 128)]
    batch = Batch(
        pad_cells(large, 128, 0), np.array([100, 128], np.int32), *[None] * 3, np.zeros(2)
    )
    lengths_V = jax.device_get(drawn(batch._replace(cells_B=np.array([7, 7], np.int32)))).lengths_B
    assert lengths_V[0] == lengths_V[1]


def test_rows_hold_any_view():
    assert view_length(2_048, 1, ViewConfig(48, 2_048)) == 2_048
    assert view_length(2_048, 1, ViewConfig(48, 256)) == 320
    assert view_length(128, 1, ViewConfig()) == 128 and view_length(2_048, 4, ViewConfig()) == 1_088
    everything = views_of(packed(), config=ViewConfig(2_048, 2_048 * 2_048))
    assert all(everything[cell] == cells(True)[cell].tolist() for cell in EVERY)
