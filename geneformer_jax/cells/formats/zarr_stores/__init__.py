"""Where zarr stores lie: folders on this machine, and URLs."""
