"""Commands on disks that are full, read-only, failing or of a network."""
