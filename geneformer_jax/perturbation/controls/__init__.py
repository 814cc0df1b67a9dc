"""What shifts must beat before they say something of a gene: controls beside the statistics."""
