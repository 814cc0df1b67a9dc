"""Figures of what attention heads look at."""

from collections.abc import Sequence

import altair as alt
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from geneformer_jax.attention_analysis.comparisons import SIGNIFICANT, has_own_matching
from geneformer_jax.attention_analysis.layers import THIRDS
from geneformer_jax.inference.random_control import MODEL, RANDOM
from geneformer_jax.reporting import charts
from geneformer_jax.reporting.figures import DIVERGING, PALETTE, STYLE, new_figure

_MEASURES = {
    "diversity": "diversity of heads\n(Jensen-Shannon distance)",
    "breadth": "breadth\n(ranks attended / tokens)",
    "top": "weight on the\nhighest tenth of ranks",
}
_GENES_PER_GROUP = 5
_MAX_GROUPS = 24
# Correlations within this are all pale, so that noise does not look like a finding.
_MIN_SCALE = 0.4


def preference_figure(heads: pd.DataFrame, title: str) -> Figure:
    """Draws how much each head prefers the genes of one list, layers down and heads across.

    Args:
      heads: rows of one comparison, of `HeadAttention.heads`; a row of maps per model, with a map
        of genes of like rank only where that is another test (`has_own_matching`).
      title: of the comparison.
    """
    models = list(dict.fromkeys(heads["model"]))
    L, N = heads["layer"].max(), heads["head"].max()
    panels = {"": heads["against"].iloc[0]}
    if has_own_matching(heads):
        panels["_matched"] = f"{heads['against'].iloc[0]} of like rank"
    effects = heads[[f"effect{suffix}" for suffix in panels]].abs().to_numpy()
    limit = max(_MIN_SCALE, float(effects.max()))
    columns = len(panels)
    with matplotlib.rc_context(STYLE):
        width, height = max(3.2, 0.62 * N + 1.4), max(2.4, 0.45 * L + 1.1)
        figure = new_figure(columns * width + 1, len(models) * height + 0.5)
        axes = figure.subplots(len(models), columns, squeeze=False, sharex=True, sharey=True)
        for row, model in enumerate(models):
            for column, (suffix, beside) in enumerate(panels.items()):
                of_model = heads[heads["model"] == model]
                effect = of_model.pivot(index="layer", columns="head", values=f"effect{suffix}")
                fdr = of_model.pivot(index="layer", columns="head", values=f"fdr{suffix}")
                image = _map(axes[row, column], effect, fdr, limit)
                axes[row, column].set_title(f"{model},\nagainst {beside}")
        for axis in axes[-1]:
            axis.set_xlabel("head")
        for axis in axes[:, 0]:
            axis.set_ylabel("layer")
        label = "rank-biserial correlation\n(+ attended more)"
        figure.colorbar(image, ax=axes, label=label, shrink=0.9)
        figure.suptitle(f"{title}   (* FDR < {SIGNIFICANT:g})", fontsize=12)
    return figure


def preference_chart(heads: pd.DataFrame) -> alt.LayerChart:
    """Charts what `preference_figure` draws, one of its maps at a time."""
    beside = heads["against"].iloc[0]
    panels = {"": beside}
    if has_own_matching(heads):
        panels["_matched"] = f"{beside} of like rank"
    parts = [
        heads[["model", "layer", "head"]].assign(
            effect=heads[f"effect{suffix}"], fdr=heads[f"fdr{suffix}"],
            map=heads["model"] + f", against {name}",
        )
        for suffix, name in panels.items()
    ]  # fmt: skip
    rows = pd.concat(parts).sort_values(["map", "layer", "head"], kind="stable")
    rows["words"] = [f"{effect:+.2f}{'*' if fdr < SIGNIFICANT else ''}"
                     for effect, fdr in zip(rows["effect"], rows["fdr"], strict=True)]  # fmt: skip
    limit = max(_MIN_SCALE, float(rows["effect"].abs().max()))
    return charts.heat_map(
        rows, ("head", "layer"), "effect", {"effect": "rank-biserial correlation", "fdr": "FDR"},
        choice="map", further=["fdr"], limit=limit, text="words",
    )  # fmt: skip


def _map(axes, effect: pd.DataFrame, fdr: pd.DataFrame, limit: float):
    image = axes.imshow(effect, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(effect.shape[1]), effect.columns)
    axes.set_yticks(range(effect.shape[0]), effect.index)
    for (row, column), value in np.ndenumerate(effect.to_numpy()):
        star = "*" if fdr.iloc[row, column] < SIGNIFICANT else ""
        colour = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(
            column, row, f"{value:+.2f}{star}", ha="center", va="center", fontsize=8, color=colour
        )
    axes.spines[:].set_visible(False)
    return image


def rank_figure(ranks: pd.DataFrame) -> Figure:
    """Draws received attention by rank, a panel per layer and a line per head.

    Args:
      ranks: rows of one group of cells, of `HeadAttention.ranks`; other models are drawn dashed.
    """
    L, N = ranks["layer"].max(), ranks["head"].max()
    columns = min(L, 3)
    received = ranks["received"][ranks["received"] > 0]
    is_narrow = received.max() < 3 * received.min()
    with matplotlib.rc_context(STYLE):
        rows = -(-L // columns)
        figure = new_figure(3.1 * columns + 1.2, 2.5 * rows + 0.4)
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for (layer, head, model), line in ranks.groupby(["layer", "head", "model"], sort=True):
            of_model = model == MODEL
            panels[layer - 1].plot(
                line["rank_from"],
                line["received"],
                color=PALETTE[(head - 1) % len(PALETTE)] if of_model else "#777777",
                ls="-" if of_model else ":",
                lw=1.6 if of_model else 1.0,
                label=f"head {head}" if of_model else (model if head == 1 else None),
            )
        for layer, axes in enumerate(panels, 1):
            axes.set_visible(layer <= L)
            axes.set(xscale="log", yscale="log", title=f"layer {layer}")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            # Labels between these run into each other, but in a narrow range there are no others.
            few = StrMethodFormatter("{x:g}") if is_narrow else NullFormatter()
            axes.yaxis.set_minor_formatter(few)
            axes.axhline(1, color="#bbbbbb", lw=0.8, zorder=0)
        for axes in panels[max(L - columns, 0) : L]:
            axes.set_xlabel("rank of the gene")
        figure.supylabel("attention received (1 = even share)", fontsize=11)
        if N <= len(PALETTE):
            handles, labels = panels[0].get_legend_handles_labels()
            order = sorted(range(len(labels)), key=lambda each: labels[each] == RANDOM)
            names = [labels[each] for each in order]
            figure.legend([handles[each] for each in order], names, loc="outside right upper")
    return figure


def rank_chart(ranks: pd.DataFrame) -> alt.LayerChart:
    """Charts what `rank_figure` draws, one layer at a time."""
    of_model = ranks["model"] == MODEL
    heads = "head " + ranks["head"].astype(str)
    rows = ranks.assign(line=heads.where(of_model, heads + ", " + ranks["model"]))
    rows = rows[rows["received"] > 0].sort_values(["layer", "line", "rank_from"], kind="stable")
    labels = {"rank_from": "rank of the gene", "received": "attention received (1: even share)"}
    return charts.lines(
        rows, "rank_from", "received", "line", labels, choice="layer", log=("x", "y"),
        dashed=sorted(set(rows["line"][rows["model"] != MODEL])),
    )  # fmt: skip


def layer_chart(layers: pd.DataFrame) -> alt.LayerChart:
    """Charts what `layer_figure` draws, one measure at a time."""
    rows = layers[(layers["head"] == 0) & layers["measure"].isin(_MEASURES)]
    rows = rows.assign(measure=rows["measure"].map(lambda each: _MEASURES[each].replace("\n", " ")))
    return charts.lines(
        rows, "layer", "mean", "model", {}, choice="measure", interval=("low", "high"),
        dashed=[name for name in rows["model"].unique() if name != MODEL], points=True,
    )  # fmt: skip


def layer_figure(layers: pd.DataFrame) -> Figure:
    """Draws diversity, breadth and weight on top ranks by layer, with 95 % intervals."""
    whole = layers[layers["head"] == 0]
    models = list(dict.fromkeys(whole["model"]))
    L = whole["layer"].max()
    with matplotlib.rc_context(STYLE):
        figure = new_figure(9.6, 3.2)
        panels = figure.subplots(1, len(_MEASURES))
        for axes, (measure, label) in zip(panels, _MEASURES.items(), strict=True):
            for number, model in enumerate(models):
                line = whole[(whole["measure"] == measure) & (whole["model"] == model)]
                error = line["mean"] - line["low"], line["high"] - line["mean"]
                axes.errorbar(
                    line["layer"], line["mean"], np.clip(error, 0, None),
                    color=PALETTE[number] if model == MODEL else "#777777",
                    ls="-" if model == MODEL else ":", marker="o", ms=4, capsize=3, label=model,
                )  # fmt: skip
            axes.set(xlabel="layer", ylabel=label, xticks=_ticks(L), ylim=(0, None))
            if L >= len(THIRDS):
                edges = [each[0] - 0.5 for each in np.array_split(np.arange(1, L + 1), 3)[1:]]
                for edge in edges:
                    axes.axvline(edge, color="#dddddd", lw=1, zorder=0)
        if len(models) > 1:
            figure.legend(
                *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2
            )
    return figure


def _ticks(layers: int) -> Sequence[int]:
    return range(1, layers + 1, max(1, layers // 8))


def group_figure(groups: pd.DataFrame) -> Figure:
    """Draws the genes most attended beyond what rank explains, in each group of cells.

    Args:
      groups: of `HeadAttention.groups`; the five first genes of each of up to 24 groups are shown,
        where their excess is above 0 by more than its error. Some must be.
    """
    names, genes, shown = _first_of_groups(groups)
    labels = shown.drop_duplicates("gene_id").set_index("gene_id")["symbol"].reindex(genes)
    labels = labels.where(labels != "", genes)
    table = shown.pivot(index="gene_id", columns="group", values="excess").reindex(
        genes, columns=names
    )
    with matplotlib.rc_context(STYLE):
        figure = new_figure(max(4.6, 0.5 * len(names) + 3.2), max(3.0, 0.24 * len(genes) + 1.8))
        axes = figure.add_subplot()
        limit = np.nanmax(np.abs(table.to_numpy()))
        axes.set_facecolor("#e8e8e8")
        image = axes.imshow(table, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(genes)), labels, fontsize=9)
        axes.spines[:].set_visible(False)
        figure.colorbar(
            image,
            ax=axes,
            label="attention beyond what rank explains\n(mean of all heads; grey: too few cells)",
        )
    return figure


def group_chart(groups: pd.DataFrame) -> alt.LayerChart:
    """Charts what `group_figure` draws."""
    names, genes, shown = _first_of_groups(groups)
    order = shown.assign(
        group=pd.Categorical(shown["group"], names), place=pd.Categorical(shown["gene_id"], genes),
        gene=shown["symbol"].where(shown["symbol"] != "", shown["gene_id"]),
    ).sort_values(["place", "group"])  # fmt: skip
    words = {"excess": "attention beyond what rank explains"}
    limit = float(order["excess"].abs().max())
    return charts.heat_map(order, ("group", "gene"), "excess", words, limit=limit)


def _first_of_groups(groups: pd.DataFrame) -> tuple[list[str], list[str], pd.DataFrame]:
    """Names of the groups and ids of the genes to show, in their order, and their rows."""
    sure = groups[groups["excess_low"] > 0]
    names = list(dict.fromkeys(sure["group"]))[:_MAX_GROUPS]
    top = sure[sure["group"].isin(names)].groupby("group", sort=False).head(_GENES_PER_GROUP)
    genes = list(dict.fromkeys(top["gene_id"]))
    return names, genes, groups[groups["gene_id"].isin(genes) & groups["group"].isin(names)]


def pair_figure(pairs: pd.DataFrame) -> Figure:
    """Draws the weight between chosen genes, the mean of all heads; queries down, keys across."""
    table = _mean_weights(pairs)
    size = max(3.6, 0.26 * len(table) + 1.6)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(size + 1.2, size)
        axes = figure.add_subplot()
        axes.set_facecolor("#e8e8e8")
        image = axes.imshow(np.log2(table), cmap=DIVERGING, **_symmetric(np.log2(table)))
        axes.set_xticks(range(table.shape[1]), table.columns, rotation=90, fontsize=8)
        axes.set_yticks(range(len(table)), table.index, fontsize=8)
        axes.set(xlabel="gene that is attended", ylabel="gene that attends")
        axes.spines[:].set_visible(False)
        figure.colorbar(
            image,
            ax=axes,
            label="log2 of weight\n(0: even share; grey: never together)",
            shrink=0.8,
        )
    return figure


def pair_chart(pairs: pd.DataFrame) -> alt.LayerChart:
    """Charts what `pair_figure` draws; pairs that are never together are left out."""
    weights = np.log2(_mean_weights(pairs)).replace(-np.inf, np.nan)
    rows = weights.stack().rename("log2 weight").reset_index()
    labels = {"key": "gene that is attended", "query": "gene that attends"}
    limit = float(rows["log2 weight"].abs().max())
    return charts.heat_map(rows, ("key", "query"), "log2 weight", labels, limit=limit)


def _mean_weights(pairs: pd.DataFrame) -> pd.DataFrame:
    return pairs.assign(
        query=pairs["query_symbol"].where(pairs["query_symbol"] != "", pairs["query"]),
        key=pairs["key_symbol"].where(pairs["key_symbol"] != "", pairs["key"]),
    ).pivot_table(index="query", columns="key", values="weight", aggfunc="mean", observed=True)


def _symmetric(values: pd.DataFrame) -> dict[str, float]:
    limit = float(np.nanmax(np.abs(values.replace(-np.inf, np.nan).to_numpy())))
    return {"vmin": -limit, "vmax": limit}
