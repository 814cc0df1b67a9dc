"""Batches through the devices, one ahead of the host, and how fast that went."""

from dataclasses import dataclass


@dataclass
class Throughput:
    """What was computed, and in what time.

    Attributes:
      cells: embedded cells.
      tokens: their tokens.
      padded: tokens with padding and filler rows.
      seconds: of the whole, reading included, but without `compiling`.
      compiling: seconds until the first batch of each bucket was under way.
    """

    cells: int = 0
    tokens: int = 0
    padded: int = 0
    seconds: float = 0.0
    compiling: float = 0.0

    def describe(self) -> str:
        """Returns one line for the user."""
        seconds = max(self.seconds, 1e-9)
        return (
            f"{self.cells:,} cells, {self.tokens:,} tokens in {self.seconds:,.1f} s "
            f"({self.cells / seconds:,.1f} cells/s, {self.tokens / seconds:,.0f} tokens/s), after "
            f"{self.compiling:,.1f} s of compiling; padding "
            f"{1 - self.tokens / max(self.padded, 1):.1%} of tokens"
        )
