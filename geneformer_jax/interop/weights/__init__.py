"""Weights as other software keeps them: safetensors, PyTorch, Hugging Face layouts."""
