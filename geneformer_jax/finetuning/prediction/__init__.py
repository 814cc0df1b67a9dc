"""A fine-tuned model applied to new cells."""
