"""Charts to explore: hover, zoom and choose, as Vega-Lite specifications built with Altair.

One function for each kind; each takes a table and returns a chart, which knows nothing of pages.
Points stand for rows of a table of which they carry the key, so that what is chosen in one can be
shown in the other. Colours are those of `figures`.
"""

from geneformer_jax.reporting.charts.parts import MAX_POINTS, describe_thinned
from geneformer_jax.reporting.charts.points import embedding_map, ranked, scatter, volcano
from geneformer_jax.reporting.charts.summaries import (
    bars,
    dots,
    heat_map,
    histogram,
    lines,
    loss_curves,
    strips,
)

__all__ = [
    "MAX_POINTS",
    "bars",
    "describe_thinned",
    "dots",
    "embedding_map",
    "heat_map",
    "histogram",
    "lines",
    "loss_curves",
    "ranked",
    "scatter",
    "strips",
    "volcano",
]
