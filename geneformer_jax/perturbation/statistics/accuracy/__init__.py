"""How exact shifts are: estimates of a screen, and rounding."""
