"""From raw counts to rank value encodings: vocabulary, medians, quality control, ranks."""
