"""The section of a report on what was left out."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from geneformer_jax.reporting.html import Report


def add_left_out(report: Report, counts: Mapping[str, Any], what: str = "Cells") -> None:
    """Adds what was left out, by reason, and how many cells were cut; nothing if neither was.

    Args:
      report: to add to.
      counts: of a provenance: `left_out` (reason -> number) and `cells_cut`.
      what: the numbers count.
    """
    left_out, cut = counts["left_out"], counts["cells_cut"]
    if not left_out and not cut:
        return
    report.section("What was left out")
    if left_out:
        table = pd.DataFrame(left_out.items(), columns=["left out", "number"])
        report.table(table, f"{what}, by reason.")
    if cut:
        report.paragraph(
            f"Cells with more genes than the model takes: {cut:,}. They were cut to their highest "
            "ranked genes."
        )
