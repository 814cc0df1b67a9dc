"""How well predicted effects fit measured ones, beside what they must beat, and in words."""
