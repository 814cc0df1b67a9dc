"""Stages of accelerator.py: checks and measurements on whatever device JAX finds."""
