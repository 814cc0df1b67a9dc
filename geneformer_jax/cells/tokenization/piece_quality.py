"""Quality control of sources that are read piece by piece.

A rule that compares a cell with its dataset needs the mean and the spread over all pieces of the
source. So each piece is measured first, by whoever has it, and what was measured is kept in a
folder; once all pieces of a source are measured, each can be judged.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from geneformer_jax.cells.counts.source import CountSource
from geneformer_jax.cells.tokenization.quality_control import (
    QualityMeasures,
    QualityRules,
    Spread,
    Spreads,
    Verdict,
    judge,
    measure,
    spreads_of,
)
from geneformer_jax.cells.tokenization.tokenizer import apply_quality_rules
from geneformer_jax.common.files import atomic_write


class PieceQuality:
    """Measures pieces, and judges their cells."""

    def __init__(self, folder: Path, rules: QualityRules):
        """Takes the rules, and where measurements are kept."""
        self._folder, self._rules = folder, rules

    def needs(self, pieces: Sequence[str]) -> bool:
        """Whether these pieces of a source must all be measured before one is judged."""
        return len(pieces) > 1 and self._rules.compare_cells

    def are_known(self, pieces: Sequence[str]) -> bool:
        """Whether each of the pieces of a source can be judged."""
        return not self.needs(pieces) or all(map(self.is_measured, pieces))

    def is_measured(self, piece: str) -> bool:
        """Whether a piece is measured."""
        return self._spreads(piece).is_file()

    def measure(self, piece: str, part: CountSource, tokens: np.ndarray) -> None:
        """Measures a piece and keeps what was measured.

        Args:
          piece: its name.
          part: its cells.
          tokens: see `apply_quality_rules`.

        Raises:
          InputError: no raw counts.
        """
        measures = measure(part, tokens)
        spreads = spreads_of(self._rules, part.table(self._rules.obs_columns), measures)
        arrays = {name: each for name, each in measures._asdict().items() if each is not None}
        with atomic_write(self._measures(piece)) as aside, aside.open("wb") as file:
            np.savez(file, **arrays)
        with atomic_write(self._spreads(piece)) as aside:
            aside.write_text(json.dumps(spreads))

    def judge(
        self, piece: str, pieces: Sequence[str], part: CountSource, tokens: np.ndarray
    ) -> Verdict:
        """Returns which cells of a piece pass.

        Args:
          piece: its name.
          pieces: of the whole source; all measured if they must be.
          part: the cells of the piece.
          tokens: see `apply_quality_rules`.

        Raises:
          InputError: no raw counts.
        """
        if not self.needs(pieces):
            return apply_quality_rules(part, self._rules, tokens)
        with np.load(self._measures(piece)) as kept:
            arrays = {name: kept.get(name) for name in QualityMeasures._fields}
        table = part.table(self._rules.obs_columns)
        return judge(self._rules, table, QualityMeasures(**arrays), self._together(tuple(pieces)))

    def forget(self, piece: str) -> None:
        """Removes what is needed no more once a piece is written: its cells' measurements."""
        self._measures(piece).unlink(missing_ok=True)

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def _together(self, pieces: tuple[str, ...]) -> Spreads:
        """Those of a whole source."""
        return Spreads.joined([self._read_spreads(each) for each in pieces])

    def _read_spreads(self, piece: str) -> Spreads:
        parts = json.loads(self._spreads(piece).read_text())
        return Spreads(*(None if each is None else Spread(*each) for each in parts))

    def _measures(self, piece: str) -> Path:
        return self._folder / f"{piece}.npz"

    def _spreads(self, piece: str) -> Path:
        return self._folder / f"{piece}.json"
