"""Tests of labels carried over."""
