"""The network that is fine-tuned: its compiled steps, what of it is trained, and its outputs."""
