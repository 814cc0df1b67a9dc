"""Copies of a run's metrics for the experiment trackers that laboratories use."""
