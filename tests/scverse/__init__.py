"""Tests of the functions as scanpy writes them."""
