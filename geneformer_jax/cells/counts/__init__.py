"""Raw counts from the files that people have: h5ad, zarr, loom, 10x."""
