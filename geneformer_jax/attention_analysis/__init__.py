"""What the attention heads of a model look at, over many cells."""
