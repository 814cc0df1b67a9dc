"""The cell store: rank value encodings on disk, as a TFDS dataset in ArrayRecord shards."""
