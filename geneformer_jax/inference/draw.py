"""Cells drawn at random: the seed, and what may be asked for."""

from geneformer_jax.common.arguments import require_whole

# The original shuffles with this seed before it takes its first `max_ncells`.
ORIGINAL_SEED = 42


def check_draw(max_cells: object, seed: object) -> None:
    """Raises InputError unless a number of cells, or None, and a seed are given."""
    if max_cells is not None:
        require_whole("max_cells", max_cells, least=1)
    require_whole("seed", seed)
