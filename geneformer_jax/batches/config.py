"""How cells form batches and views, and which of their genes are masked: typed and checked."""

import dataclasses

from geneformer_jax.common.config import require, require_count

MAX_BUCKETS = 24
MEGA_BATCH_MULTIPLIER = 1_000  # of the original's own sampler for its first models
SELECTED_FRACTION = 0.15


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which cells, and how they form batches.

    Attributes:
      store: folder written by `tokenize`.
      tokens_per_batch: padded tokens in a batch over all devices (every step costs the same); 0
        where cells_per_batch is given.
      cells_per_batch: cells in a batch over all devices, as the original does; 0 where
        tokens_per_batch is given.
      max_buckets: padded lengths at most; each is one more compiled program.
      packing: put several cells into each row, as long as the longest cell, instead of padding each
        to a bucket; needs tokens_per_batch.
      mega_batch_multiplier: batches in a length-grouped mega-batch.
      workers: processes that read ahead; 0 reads in threads.
    """

    store: str = ""
    tokens_per_batch: int = 0
    cells_per_batch: int = 0
    max_buckets: int = MAX_BUCKETS
    packing: bool = False
    mega_batch_multiplier: int = MEGA_BATCH_MULTIPLIER
    workers: int = 0

    def __post_init__(self):
        for name in ("max_buckets", "mega_batch_multiplier"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        require(self.workers >= 0, "data.workers", self.workers, "it must not be negative")
        require(
            not (self.packing and self.cells_per_batch),
            "data.cells_per_batch",
            self.cells_per_batch,
            "packed rows hold varying numbers of cells: set it to 0, and data.tokens_per_batch",
        )


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """How genes are masked, and where.

    Attributes:
      selected_fraction: probability that a gene is selected.
      mask_fraction: of the selected, the fraction that becomes `<mask>`.
      random_fraction: of the selected, the fraction that becomes a random token.
      random_special_tokens: also draw special tokens as replacements, as the original does.
      on_device: mask within the step instead of on the host, whose cores it relieves; the masks
        are the same.
    """

    selected_fraction: float = SELECTED_FRACTION
    mask_fraction: float = 0.8
    random_fraction: float = 0.1
    random_special_tokens: bool = False
    on_device: bool = False

    def __post_init__(self):
        selected = self.selected_fraction
        require(0 < selected < 1, "masking.selected_fraction", selected, "between 0 and 1")
        for name in ("mask_fraction", "random_fraction"):
            require(getattr(self, name) >= 0, f"masking.{name}", getattr(self, name), "0 or more")
        require(
            self.mask_fraction + self.random_fraction <= 1,
            "masking.mask_fraction",
            self.mask_fraction,
            f"with masking.random_fraction {self.random_fraction} it must be at most 1",
        )


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """How many of its genes a view of a cell has; see batches.views.

    Attributes:
      least_genes: smallest number; of a cell that has fewer than twice as many, half of them.
      most_genes: largest number; of a cell that has fewer, all of them.
    """

    least_genes: int = 48
    most_genes: int = 256

    def __post_init__(self):
        require_count("objective.views.least_genes", self.least_genes, 1)
        require_count("objective.views.most_genes", self.most_genes, self.least_genes)
