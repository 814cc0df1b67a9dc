"""Which cells form step t, and how they become masked device batches."""
