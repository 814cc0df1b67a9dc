"""Fixtures that several tests of this folder use."""

from tests.helpers.count_fixtures import files, original_files, vocabulary

__all__ = ["files", "original_files", "vocabulary"]
