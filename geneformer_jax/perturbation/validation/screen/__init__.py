"""What was measured: labels and expression of a screen, and genes to compare its own with."""
