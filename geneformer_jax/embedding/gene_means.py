"""Mean and spread of each gene's hidden states, gathered batch by batch.

Sums of many float32 states lose digits, so running means and squared distances from them are kept:
Welford's update on the devices, merged in float64 on the host (Chan, Golub and LeVeque).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class GeneTotals(NamedTuple):
    """What was seen of each token.

    Attributes:
      cells: [V] how many times it occurred, once in each cell that has it.
      means: [K, V, D] mean hidden state in each of K layers, 0 for tokens not seen.
      squares: [K, V] sum of squared Euclidean distances from that mean.
    """

    cells: np.ndarray | jax.Array
    means: np.ndarray | jax.Array
    squares: np.ndarray | jax.Array

    @classmethod
    def empty(cls, layers: int, vocabulary: int, width: int) -> "GeneTotals":
        """Returns the totals of no cells, float64 on the host."""
        return cls(
            np.zeros(vocabulary, np.int64),
            np.zeros((layers, vocabulary, width)),
            np.zeros((layers, vocabulary)),
        )

    def merged(self, other: "GeneTotals") -> "GeneTotals":
        """Returns the totals of both, on the host."""
        cells = self.cells + other.cells
        weight = other.cells / np.maximum(cells, 1)
        apart = other.means - self.means
        squares = self.squares + other.squares + (apart**2).sum(-1) * (self.cells * weight)
        return GeneTotals(cells, self.means + apart * weight[:, None], squares)

    def spread(self) -> np.ndarray:
        """Returns [K, V] the root mean square distance of a token's states from their mean."""
        return np.sqrt(self.squares / np.maximum(self.cells, 1))


def zero_totals(layers: int, vocabulary: int, width: int) -> GeneTotals:
    """Returns the totals of no cells, to be updated on a device."""
    return GeneTotals(
        np.zeros(vocabulary, np.int32),
        np.zeros((layers, vocabulary, width), np.float32),
        np.zeros((layers, vocabulary), np.float32),
    )


def add_states(
    totals: GeneTotals, hidden_KBTD: jax.Array, tokens_BT: jax.Array, is_real_BT: jax.Array
) -> GeneTotals:
    """Returns `totals` with a batch of float32 hidden states added."""
    vocabulary = len(totals.cells)
    # Pads are sent beyond the table, where additions are dropped.
    rows_BT = jnp.where(is_real_BT, tokens_BT, vocabulary)
    means_KBTD = totals.means.at[:, rows_BT].get(mode="fill", fill_value=0)
    apart_KBTD = hidden_KBTD - means_KBTD
    sums_KVD = jnp.zeros_like(totals.means).at[:, rows_BT].add(apart_KBTD, mode="drop")
    squares_KBT = (apart_KBTD**2).sum(-1)
    squares_KV = totals.squares.at[:, rows_BT].add(squares_KBT, mode="drop")
    cells = totals.cells.at[rows_BT].add(1, mode="drop")
    shift_KVD = sums_KVD / jnp.maximum(cells, 1)[:, None]
    return GeneTotals(cells, totals.means + shift_KVD, squares_KV - cells * (shift_KVD**2).sum(-1))
