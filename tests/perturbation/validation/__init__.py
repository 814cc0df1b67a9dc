"""Tests of predicted against measured perturbations."""
