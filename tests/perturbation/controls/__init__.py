"""Tests of controls beside shifts."""
