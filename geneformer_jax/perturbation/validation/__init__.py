"""Predicted against measured perturbations: screens with cells, and lists of hits."""
