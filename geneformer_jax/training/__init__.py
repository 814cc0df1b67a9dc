"""Mesh, optimizer, train state, loop, checkpoints and telemetry."""
