"""What a store holds of its sources: cells kept, and dropped by reason and label."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from geneformer_jax.cells.store import layout
from geneformer_jax.cells.store import writer as store_writer
from geneformer_jax.cells.store.label_counts import count_by_label, describe_labels
from geneformer_jax.cells.tokenization.quality_control import describe_left_out

DROPPED_LABELS = "dropped_by_label"
_OF_PIECES = ("shards", "rows", DROPPED_LABELS)
_SUMMED = ("cells_in_file", "cells")


def summarise(store: Path, keys: Sequence[str], bad_files: Mapping[str, str]) -> dict[str, Any]:
    """Counts a store's cells: in its files, kept, dropped by reason and label; per source too.

    Args:
      store: its folder.
      keys: of its pieces, in order.
      bad_files: path -> reason of the files that were skipped.
    """
    pieces = {key: store_writer.source_summary(store, key) for key in keys}
    groups = itertools.groupby(keys, key=layout.source_of)
    sources = [_joined([pieces[key] for key in group]) for _, group in groups]
    without: Counter[str] = Counter()
    for each in sources:
        without.update(dict.fromkeys(each.get("obs_absent", ()), each["cells"]))
    dropped_labels = [each.get(DROPPED_LABELS, {}) for each in pieces.values()]
    return {
        "cells_in_files": sum(each["cells_in_file"] for each in sources),
        "cells": sum(each["cells"] for each in sources),
        "dropped": _dropped(sources),
        "by_label": count_by_label(store, keys, dropped_labels),
        "cells_without_obs": dict(without),
        "skipped_files": dict(bad_files),
        "sources": sources,
    }


def _joined(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of a source from those of its pieces."""
    source = {name: pieces[0][name] for name in pieces[0] if name not in _OF_PIECES}
    summed = {name: sum(each[name] for each in pieces) for name in _SUMMED}
    return {**source, **summed, "dropped": _dropped(pieces)}


def _dropped(parts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    dropped: Counter[str] = Counter()
    for each in parts:
        dropped.update(each["dropped"])
    return dict(dropped)


def describe_store(folder: Path, counts: Mapping[str, Any], files: int) -> Iterator[str]:
    """Yields the lines that a finished build shows of its store.

    Args:
      folder: of the store.
      counts: see `summarise`.
      files: that the build has added, or found added.
    """
    skipped = len(counts["skipped_files"])
    yield f"{folder}: {counts['cells']:,} of {counts['cells_in_files']:,} cells"
    if skipped:
        yield f"  {skipped} of {files + skipped} files SKIPPED"
    yield from describe_left_out(counts["dropped"])
    yield from describe_labels(counts["by_label"])
    for name, cells in counts["cells_without_obs"].items():
        yield f"  without obs column {name}: {cells:,}"
    for source in counts["sources"]:
        for rule in source["rules_not_applied"]:
            yield f"  not applied to {source['path']}: {rule}"
    yield from describe_bad_files(counts["skipped_files"])


def describe_bad_files(bad_files: Mapping[str, str]) -> Iterator[str]:
    """Yields a line for each file that was skipped."""
    for path, reason in bad_files.items():
        yield f"  SKIPPED {reason if reason.startswith(path) else f'{path}: {reason}'}"
