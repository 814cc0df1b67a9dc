"""What a trained model is used for: embeddings, perturbation, attention, classification."""
