"""Names of the files in a cell store."""

# Written last: a folder without it is no store yet.
DATASET_INFO = "dataset_info.json"
STORE, LENGTHS, N_GENES, OBS, VOCABULARY = (
    "store.json",
    "lengths.npy",
    "n_genes.npy",
    "obs.parquet",
    "vocabulary",
)
# SHA-256 of the files of numbers, which do not check themselves as the shards and tables do.
CHECKSUMS = "checksums.json"
# Sources keep a folder each, and the order in which they joined.
SOURCES, SOURCE, ORDER = "sources", "source.json", "order.json"
DATASET, SPLIT = "cells", "train"
FILE_NAMES = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


def shard_name(index: int) -> str:
    """Name of a store's shard, as in `FILE_NAMES` for TFDS."""
    return f"{DATASET}-{SPLIT}.array_record-{index:05d}"
