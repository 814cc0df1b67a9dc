"""Figures of what `gf.tl` wrote, as scanpy draws its own.

    gf.pl.umap(adata, color="cell_type")
    gf.pl.volcano(adata)
    gf.pl.ranked_shifts(adata)
    gf.pl.controls(adata)            # can it be believed?

All take `ax` (but for those of several panels), `show` and `save`, and return their Axes. Without a
display nothing is shown, and nothing fails. What is imported here starts no JAX and no matplotlib.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geneformer_jax.common.arguments import describe, require_path, require_text, require_type
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.scverse.writing import require_anndata, results_in

if TYPE_CHECKING:
    import anndata
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["controls", "ranked_shifts", "umap", "volcano"]
_PERTURB = "gf.tl.perturb"
_GOAL_SHIFT, _COSINE = "Shift_to_goal_end", "Cosine_sim_mean"
_SIZE = (7.2, 4.8)
# Letters of a line across a panel of controls, and its height in inches.
_LETTERS, _LINE = 170, 0.17


def __dir__() -> list[str]:
    # What completion in a notebook offers.
    return __all__


def umap(
    adata: anndata.AnnData,
    color: str | Sequence[str],
    *,
    basis: str = "X_geneformer",
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: Path | str | None = None,
) -> Axes | list[Axes]:
    """Draws cells where `gf.tl.umap` has put them.

    Args:
      adata: with `.obsm["<basis>_umap"]`.
      color: column of `.obs`, or a gene of `.var_names`; several are drawn beside each other.
      basis: name of the embeddings in `.obsm`.
      layer: of genes: layer whose values are drawn; X by default.
      ax: to draw on, of one color; a new figure by default.
      show: show the figure; by default where there is a display, and neither `ax` nor `save`.
      save: file to write the figure to, as .png, .pdf or .svg.

    Returns:
      The Axes, a list of them for several colors.

    Raises:
      InputError: there are no such positions, column or gene, or more categories than can be told
        apart.
    """
    import numpy as np

    from geneformer_jax.reporting.figures import umap_figure

    require_anndata(adata)
    require_text("basis", basis, "a name in .obsm")
    names = [color] if isinstance(color, str) else color
    require_type("color", names, (list, tuple), "give a column of .obs or a gene, or several")
    if f"{basis}_umap" not in adata.obsm:
        raise InputError(
            f'.obsm has no "{basis}_umap"; lay the cells out first: gf.tl.umap(adata, '
            f'basis="{basis}")'
        )
    values = [_values(adata, name, layer) for name in names]
    positions = np.asarray(adata.obsm[f"{basis}_umap"])
    known = np.isfinite(positions).all(axis=1)
    drawn = _axes(ax, len(names), show, save)
    for axes, each in zip(drawn, values, strict=True):
        umap_figure(positions[known], each[known], axes=axes)
    _finish(drawn[0].figure, ax, show, save)
    return drawn[0] if isinstance(color, str) else drawn


def _values(adata: anndata.AnnData, name: object, layer: str | None) -> pd.Series:
    """A column of obs, or the values of a gene, by cell."""
    if name not in adata.obs and name not in adata.var_names:
        known = [*adata.obs, *adata.var_names]
        raise InputError(
            f"`color` is {describe(name)}, which is no column of .obs and no gene"
            f"{did_you_mean(name, known)}; .obs has {', '.join(adata.obs) or 'none'}"
        )
    if name in adata.obs:
        return adata.obs[name]
    try:
        return adata[:, [name]].to_df(layer)[name]
    except KeyError:
        raise InputError(
            f"the AnnData has no layer {describe(layer)}{did_you_mean(layer, adata.layers)}"
        ) from None


def volcano(
    adata: anndata.AnnData,
    *,
    key: str = "perturbation",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Path | str | None = None,
) -> Axes:
    """Draws the shift of each edit towards the goal against its significance among all edits.

    Args:
      adata: with what `gf.tl.perturb` wrote with `states`.
      key: of these results in `.uns`.
      ax: to draw on; a new figure by default.
      show: show the figure; by default where there is a display, and neither `ax` nor `save`.
      save: file to write the figure to, as .png, .pdf or .svg.

    Raises:
      InputError: there are no such results, or they have no p-values.
    """
    from geneformer_jax.perturbation.statistics.figures import volcano_figure

    result = results_in(adata, key, _PERTURB)
    table, rate = result["statistics"], "Goal_end_FDR"
    if rate not in table:
        raise InputError(
            f'.uns["{key}"] has no p-values, as no goal was named; perturb with `states`, or draw '
            "gf.pl.ranked_shifts"
        )
    labels = {_GOAL_SHIFT: _label(result["params"]), rate: "-log10 FDR against all edits"}
    (axes,) = _axes(ax, 1, show, save)
    volcano_figure(table, _GOAL_SHIFT, rate, labels, axes)
    _finish(axes.figure, ax, show, save)
    return axes


def ranked_shifts(
    adata: anndata.AnnData,
    *,
    key: str = "perturbation",
    ax: Axes | None = None,
    show: bool | None = None,
    save: Path | str | None = None,
) -> Axes:
    """Draws all edits by the rank of their shift, and names the outermost.

    Args:
      adata: with what `gf.tl.perturb` wrote.
      key: of these results in `.uns`.
      ax: to draw on; a new figure by default.
      show: show the figure; by default where there is a display, and neither `ax` nor `save`.
      save: file to write the figure to, as .png, .pdf or .svg.

    Raises:
      InputError: there are no such results.
    """
    from geneformer_jax.perturbation.statistics.figures import ranked_figure

    result = results_in(adata, key, _PERTURB)
    table = result["statistics"]
    shift = _GOAL_SHIFT if _GOAL_SHIFT in table else _COSINE
    chosen, words = table["N_Detections"] < 2, "one cell only"
    if "Sig" in table:
        chosen, words = table["Sig"] == 1, "FDR < 0.05"
    (axes,) = _axes(ax, 1, show, save)
    ranked_figure(table, shift, chosen, (_label(result["params"]), words), axes)
    _finish(axes.figure, ax, show, save)
    return axes


def controls(
    adata: anndata.AnnData,
    *,
    key: str = "perturbation",
    show: bool | None = None,
    save: Path | str | None = None,
) -> list[Axes]:
    """Draws whether a perturbation can be believed: its shifts beside what they must beat.

    Shifts by rank beside those of genes of like rank, where genes stand among these, in how many
    cells genes are in sight, shifts towards the goal and towards the start where both are states,
    and what each control found.

    Args:
      adata: with what `gf.tl.perturb` wrote.
      key: of these results in `.uns`.
      show: show the figure; by default where there is a display, and no `save`.
      save: file to write the figure to, as .png, .pdf or .svg.

    Raises:
      InputError: there are no such results, or no controls stand beside them.
    """
    import matplotlib

    from geneformer_jax.reporting.figures import STYLE

    result = results_in(adata, key, _PERTURB)
    if "Matched_FDR" not in result["statistics"]:
        raise InputError(
            f'no controls stand beside .uns["{key}"]; perturb single genes, each in turn, by '
            f"{_PERTURB}(adata, model)"
        )
    _check(show, save)
    lines = _findings(result["controls"])
    words = _LINE * len(lines) + 0.2
    with matplotlib.rc_context(STYLE):
        figure = _new_figure(14.4, 7.2 + words)
        above, below = figure.subfigures(2, 1, height_ratios=(7.2, words))
        _draw_controls(result, *above.subfigures(1, 2))
        axes = below.add_subplot()
        axes.set_axis_off()
        axes.text(0, 1, "\n".join(lines), va="top", fontsize=10)
    _finish(figure, None, show, save)
    return figure.axes


def _draw_controls(result: Mapping[str, Any], left: Any, right: Any) -> None:
    import numpy as np

    from geneformer_jax.perturbation.controls import figures
    from geneformer_jax.perturbation.controls.of_genes import MIN_COVERAGE
    from geneformer_jax.perturbation.statistics.modes.result import MIN_CELLS
    from geneformer_jax.perturbation.statistics.shifts import SIGNIFICANT

    table, params = result["statistics"], result["params"]
    is_compared = table["N_Detections"] >= MIN_CELLS
    panels = [
        (words, np.where(is_compared, table[name], np.nan))
        for words, name in (
            ("shift minus the cell's mean", "Within_cell_shift"),
            ("minus genes of like rank", "Like_rank_shift"),
        )
    ]
    differs = table["Matched_FDR"].to_numpy() < SIGNIFICANT
    figures.rank_figure(table["Mean_rank"].to_numpy(), panels, differs, left)
    # Heights beside what is drawn.
    draw = [(1, lambda into: figures.coverage_figure(table["Coverage"], MIN_COVERAGE, into))]
    if len(percentiles := table["Matched_percentile"].dropna()):
        draw.insert(0, (1, lambda into: figures.percentile_figure(percentiles, into)))
    if "Shift_to_start" in table:
        both = table.loc[is_compared, ["Shift_to_start", _GOAL_SHIFT]].dropna().to_numpy().T
        if both.size:
            names = params["states"]["start"], params["goal"]
            draw.append((1.7, lambda into: figures.states_figure(*both, names, into)))
    heights = [height for height, _ in draw]
    places = np.atleast_1d(right.subfigures(len(draw), 1, height_ratios=heights))
    for (_, each), into in zip(draw, places, strict=True):
        each(into)


def _findings(table: pd.DataFrame) -> list[str]:
    """Returns what each control that was made asks and found, in lines."""
    made = table[~table["result"].str.startswith("not made")]
    lines = []
    for row in made.to_dict("records"):
        lines.append(f"{row['what it asks']} {_sentence(row['verdict'])}")
        lines += textwrap.wrap(_sentence(row["result"]), _LETTERS, initial_indent="    ",
                               subsequent_indent="    ")  # fmt: skip
    return lines


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _label(params: Mapping[str, Any]) -> str:
    if goal := params.get("goal"):
        return f"mean shift towards {goal}"
    return f"{str(params['measure']).replace('_', ' ')}, mean over cells"


def _check(show: object, save: object) -> None:
    if not (show is None or isinstance(show, bool)):
        raise InputError(f"`show` is {describe(show)}; give True, False or None")
    if save is not None:
        require_path("save", save, "a file for the figure, such as volcano.png")
        _format_of(save)


def _format_of(save: Path | str) -> str:
    from geneformer_jax.common.files import suffix_of

    known = (".png", ".pdf", ".svg")
    if suffix_of(save) not in known:
        raise InputError(f"`save` {save} must end in {', '.join(known)}")
    return suffix_of(save).removeprefix(".")


def _axes(ax: object, count: int, show: object, save: object) -> list[Axes]:
    """Returns the Axes that were given, or those of a new figure."""
    import matplotlib
    from matplotlib.axes import Axes

    from geneformer_jax.reporting.figures import STYLE

    _check(show, save)
    if ax is not None:
        require_type("ax", ax, Axes, "give matplotlib Axes, or leave it out")
        if count > 1:
            raise InputError(f"`ax` is one of Axes, but {count} colors are to be drawn; name one")
        return [ax]
    with matplotlib.rc_context(STYLE):
        figure = _new_figure(_SIZE[0] * count, _SIZE[1])
        return [figure.add_subplot(1, count, 1 + place) for place in range(count)]


def _new_figure(width: float, height: float) -> Figure:
    """A figure of pyplot, which notebooks show; without a display, one that can be saved."""
    from matplotlib import pyplot as plt

    try:
        return plt.figure(figsize=(width, height), layout="constrained")
    except ImportError:
        # The backend that was chosen needs a display, or is not installed.
        plt.switch_backend("agg")
        return plt.figure(figsize=(width, height), layout="constrained")


def _finish(figure: Figure, ax: object, show: bool | None, save: Path | str | None) -> None:
    """Saves and shows a figure as it was asked for."""
    from matplotlib import pyplot as plt

    from geneformer_jax.common.files import atomic_write
    from geneformer_jax.reporting.figures import picture

    if save is not None:
        target = Path(save).expanduser()
        with atomic_write(target) as aside:
            aside.write_bytes(picture(figure, _format_of(target)))
    if show or (show is None and ax is None and save is None):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*non-interactive.*cannot be shown")
            plt.show()
