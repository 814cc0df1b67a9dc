"""Commands killed at every stage of their lives, and given again."""
