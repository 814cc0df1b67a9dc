"""The command tokenize as work that processes may share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geneformer_jax.cells.store import layout
from geneformer_jax.cells.store.builder import StoreBuild
from geneformer_jax.common.files import count_files, remove
from geneformer_jax.common.log import logger


class TokenizeRun:
    """A `SharedRun` that builds a cell store."""

    def __init__(
        self,
        build: StoreBuild,
        paths: Sequence[Path],
        configuration: Mapping[str, Any],
        skip_bad_files: bool = False,
    ):
        """Takes the build of a store, its files, and the options for its provenance."""
        self._build, self._paths = build, list(paths)
        self._configuration, self._skip_bad_files = configuration, skip_bad_files
        self._is_complete = False

    def is_complete(self) -> bool:
        """Whether the store is complete and holds all files; see `StoreBuild.is_complete`."""
        return self._build.is_complete(self._paths)

    def prepare(self) -> None:
        """Surveys the files; see `StoreBuild.survey`."""
        build = self._build
        logger.info("%s -> %s", count_files(self._paths), build.folder)
        build.survey(self._paths, self._skip_bad_files)
        self._is_complete = build.is_complete([source.path for source in build.index.sources])

    def make(self, shard: tuple[int, int]) -> bool:
        """Writes the pieces of a share; see `StoreBuild.write`."""
        return self._is_complete or self._build.write(shard, self._skip_bad_files)

    def finish(self) -> None:
        """Joins the pieces; see `StoreBuild.finish`."""
        if self._is_complete:
            remove(self._build.folder / layout.SHARES)
            logger.info("%s is complete and holds all of these files", self._build.folder)
        else:
            self._build.finish(self._configuration, self._skip_bad_files)
