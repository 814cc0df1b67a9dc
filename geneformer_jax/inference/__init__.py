"""What embedding, perturbation and attention analysis share: cells, batches, pipeline, resuming."""
