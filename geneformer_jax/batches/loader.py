"""Masked batches of a cell store, read ahead by grain."""

import functools
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from grain import DatasetIterator

from geneformer_jax.batches.config import MaskingConfig
from geneformer_jax.batches.masking import Packing, mask_cells
from geneformer_jax.batches.plan import BatchPlan, PackedPlan, PlanRecipe
from geneformer_jax.cells.store.cell_store import CellStore, EncodedCells
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary


class Batch(NamedTuple):
    """The cells of one step, or the rows of it that one process holds.

    Attributes:
      tokens_BT: int32 token ids with masked genes replaced, padded on the right.
      lengths_B: int32 real tokens in each row; 0 for filler rows.
      positions_BM: int32 where the selected genes stand; None until the batch is masked.
      targets_BM: int32 the genes that stood there; None until the batch is masked.
      weights_BM: float32 1 for selected genes, 0 for unused slots; None until it is masked.
      cells_B: int32 numbers of the cells in the store; -1 for filler rows. Of packed rows
        [B, most cells of a row].
      packing: where the cells of packed rows stand; None where each row is one cell.
    """

    tokens_BT: np.ndarray
    lengths_B: np.ndarray
    positions_BM: np.ndarray | None
    targets_BM: np.ndarray | None
    weights_BM: np.ndarray | None
    cells_B: np.ndarray
    packing: Packing | None = None


def mask_batch(
    batch: Batch, *, seed: int, step: Any, config: MaskingConfig, vocabulary: GeneVocabulary
) -> Batch:
    """Masks a batch, on the host or within a jitted step; see masking.mask_cells."""
    masked = mask_cells(
        batch.tokens_BT,
        batch.lengths_B,
        batch.cells_B,
        seed=seed,
        step=step,
        config=config,
        vocabulary=vocabulary,
        packing=batch.packing,
    )
    return batch._replace(**masked._asdict())


def pad_cells(cells: list[np.ndarray], bucket: int, pad_token: int) -> np.ndarray:
    """Returns int32 tokens [cells, bucket], padded on the right."""
    tokens_BT = np.full((len(cells), bucket), pad_token, np.int32)
    for row, tokens in enumerate(cells):
        tokens_BT[row, : len(tokens)] = tokens
    return tokens_BT


def read_padded(
    source: EncodedCells, cells_B: np.ndarray, bucket: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reads cells, padded on the right.

    Args:
      source: where the cells are.
      cells_B: their numbers; -1 for filler rows.
      bucket: T.

    Returns:
      (int32 tokens [B, T], int32 real tokens in each row [B], 0 for filler rows).
    """
    real = cells_B >= 0
    tokens = source.read(cells_B[real])
    pad = source.vocabulary.pad_id
    tokens_BT = np.full((len(cells_B), bucket), pad, np.int32)
    tokens_BT[real] = pad_cells(tokens, bucket, pad)
    lengths_B = np.zeros(len(cells_B), np.int32)
    lengths_B[real] = [len(cell) for cell in tokens]
    return tokens_BT, lengths_B


def pack_cells(
    cells: list[np.ndarray], rows: np.ndarray, shape: tuple[int, int], pad_token: int
) -> tuple[np.ndarray, np.ndarray, Packing]:
    """Lays cells into rows, one after another.

    Args:
      cells: tokens of each.
      rows: row of each cell, ascending.
      shape: (B, T).
      pad_token: what stands behind the last cell of a row.

    Returns:
      (int32 tokens [B, T], int32 number of them in each row, where the cells stand).
    """
    tokens_BT = np.full(shape, pad_token, np.int32)
    segments_BT, ranks_BT = np.zeros((2, *shape), np.int32)
    lengths_B, segments_B = np.zeros((2, shape[0]), np.int32)
    ranks = np.arange(shape[1], dtype=np.int32)
    for tokens, row in zip(cells, rows, strict=True):
        place = slice(lengths_B[row], lengths_B[row] + len(tokens))
        segments_B[row] += 1
        tokens_BT[row, place] = tokens
        segments_BT[row, place] = segments_B[row]
        ranks_BT[row, place] = ranks[: len(tokens)]
        lengths_B[row] = place.stop
    return tokens_BT, lengths_B, Packing(segments_BT, ranks_BT)


class BatchShard(NamedTuple):
    """The rows of every batch that one process reads: the `index`-th of `count` equal parts."""

    index: int = 0
    count: int = 1

    def rows(self, cells: np.ndarray) -> np.ndarray:
        """Returns this process's part of the rows of a batch."""
        size = len(cells) // self.count
        return cells[self.index * size : (self.index + 1) * size]


WHOLE = BatchShard()


class MaskedBatches:
    """Random access to the batch of every step; a grain data source.

    Holds paths and numbers only, so that sending it to a worker process is cheap: store and plan
    are opened there.
    """

    def __init__(
        self,
        store: CellStore,
        recipe: PlanRecipe,
        masking: MaskingConfig | None,
        steps: int,
        shard: BatchShard = WHOLE,
    ):
        """Describes the batches.

        Args:
          store: where the cells are.
          recipe: which cells form a step.
          masking: how genes are masked; None leaves that to the step on the device.
          steps: number of steps.
          shard: the rows of each batch that this process reads.
        """
        self._store, self._recipe, self._masking = store, recipe, masking
        self._steps, self._shard = steps, shard

    def __len__(self) -> int:
        return self._steps

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "plan"}

    def whole(self) -> "MaskedBatches":
        """Returns the same batches with all of their rows."""
        return MaskedBatches(self._store, self._recipe, self._masking, self._steps)

    @functools.cached_property
    def plan(self) -> BatchPlan | PackedPlan:
        """The plan, laid out when first needed."""
        return self._recipe.make(self._store.lengths)

    def __getitem__(self, step: int) -> Batch:
        cells_B, bucket = self.plan.step(int(step))
        cells_B = self._shard.rows(cells_B)
        if cells_B.ndim == 2:
            batch = self._packed(cells_B, bucket)
        else:
            padded = read_padded(self._store, cells_B, bucket)
            batch = Batch(*padded, None, None, None, cells_B.astype(np.int32))
        if self._masking is None:
            return batch
        return mask_batch(
            batch,
            seed=self._recipe.seed,
            step=int(step),
            config=self._masking,
            vocabulary=self._store.vocabulary,
        )

    def _packed(self, cells_BC: np.ndarray, row_length: int) -> Batch:
        rows, _ = real = np.nonzero(cells_BC >= 0)
        tokens = self._store.read(cells_BC[real])
        shape = len(cells_BC), row_length
        tokens_BT, lengths_B, packing = pack_cells(
            tokens, rows, shape, self._store.vocabulary.pad_id
        )
        cells_BC = cells_BC.astype(np.int32)
        return Batch(tokens_BT, lengths_B, None, None, None, cells_BC, packing)


def read_ahead(batches: MaskedBatches, first_step: int, workers: int) -> "DatasetIterator[Batch]":
    """Yields the batches of steps `first_step`, `first_step` + 1, ..., read ahead of their use.

    To be closed before the end, which ends its processes and threads: as Python ends, with them at
    work, it may hang.

    Args:
      batches: the batches of all steps.
      first_step: where to begin: resuming is nothing more than this.
      workers: processes that read; 0 reads in threads of this process, which is faster while one
        process keeps up (moving arrays between processes costs more than making them).
    """
    # Imported where it is needed: batches are also made where it is not installed.
    import grain
    from absl import flags

    # grain reads an absl flag when it starts workers; programs that parsed none would stop there.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    dataset = grain.MapDataset.source(batches)[first_step:]
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    iterated = dataset.to_iter_dataset(options)
    if workers:
        multiprocessing = grain.MultiprocessingOptions(num_workers=workers)
        iterated = iterated.mp_prefetch(multiprocessing, worker_init_fn=_leave_interrupts)
    return iter(iterated)


def _leave_interrupts(_worker: int, _workers: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to all processes, to the one that tells of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
