"""How large everything is: as published for a device, tiny for a test of the script itself."""

from typing import NamedTuple

from geneformer_jax.model.config import EncoderConfig, preset


class Sizes(NamedTuple):
    """What the stages compute.

    Attributes:
      precision: of what is measured.
      v1, v2, large: shapes of V1-10M, V2-104M and V2-316M.
      full_rows: cells of full length in a training batch, of v1 and of v2.
      row_tokens: tokens in a training batch of real lengths.
      real_cells: cells of real lengths that are trained on.
      max_buckets: padded lengths of them; each is compiled.
      embedded: cells that are embedded.
      embedded_batch: cells in a batch of these.
      long: tokens of long cells in checks of attention, 64 modulo 128.
      exact_edits: deletions that are made exactly.
      screened_cells: cells whose deletions are estimated.
      profiled_cells: cells whose heads are read off.
      steps: training steps between two looks at the clock.
      curve_steps: steps of the loss curves that are compared.
    """

    precision: str
    v1: EncoderConfig
    v2: EncoderConfig
    large: EncoderConfig
    full_rows: tuple[int, int]
    row_tokens: int
    real_cells: int
    max_buckets: int
    embedded: int
    embedded_batch: int
    long: int
    exact_edits: int
    screened_cells: int
    profiled_cells: int
    steps: int
    curve_steps: int


# Fused attention has no dropout of weights.
_FUSED = {"attention_dropout": 0.0}
# 15,681 cells in batches of 256 are what nano-Geneformer published for one A100.
PUBLISHED = Sizes(
    precision="bfloat16",
    v1=preset("v1_10m", **_FUSED),
    v2=preset("v2_104m", **_FUSED),
    large=preset("v2_316m", **_FUSED),
    full_rows=(64, 32),
    row_tokens=131_072,
    real_cells=4_096,
    max_buckets=4,
    embedded=15_681,
    embedded_batch=256,
    long=2_112,
    exact_edits=2_048,
    screened_cells=48,
    profiled_cells=64,
    steps=10,
    curve_steps=20,
)


def _tiny(layers: int, positions: int) -> EncoderConfig:
    return EncoderConfig(66, layers, 16, 2, 32, positions, 0.02, 0.0)


TINY = Sizes(
    precision="float32",
    v1=_tiny(2, 32),
    v2=_tiny(2, 64),
    large=_tiny(3, 64),
    full_rows=(4, 2),
    row_tokens=128,
    real_cells=24,
    max_buckets=2,
    embedded=24,
    embedded_batch=8,
    long=192,
    exact_edits=16,
    screened_cells=2,
    profiled_cells=2,
    steps=2,
    curve_steps=20,
)
