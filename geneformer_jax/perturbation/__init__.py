"""In silico perturbation: genes deleted or moved, and how far that shifts cells."""
