"""A view config for Vitessce (https://vitessce.io): cells on a map, their labels, their genes."""

from collections.abc import Mapping
from typing import Any

# Of the schema; Vitessce brings older ones up to its own.
_VERSION = "1.0.16"
_SHARED = {"dataset": "A", "obsType": "cell"}


def view_config(
    title: str,
    url: str,
    embeddings: Mapping[str, str],
    labels: Mapping[str, str],
    *,
    has_counts: bool,
    symbols: str = "",
) -> dict[str, Any]:
    """Returns a view config, for a file of JSON, of cells in an AnnData Zarr store.

    Args:
      title: of the page.
      url: under which a browser finds the store.
      embeddings: name to be shown -> key in `.obsm` of an array whose first two columns are drawn.
      labels: name to be shown -> column of `.obs` with labels.
      has_counts: whether `.X` holds a value for each gene.
      symbols: column of `.var` by which genes are shown; "" for their ids.
    """
    options: dict[str, Any] = {
        "obsEmbedding": [
            {"path": f"obsm/{key}", "dims": [0, 1], "embeddingType": name}
            for name, key in embeddings.items()
        ]
    }
    lists = []
    if labels:
        options["obsSets"] = [{"name": name, "path": f"obs/{key}"} for name, key in labels.items()]
        lists += ["obsSets", "obsSetSizes"]
    if has_counts:
        options["obsFeatureMatrix"] = {"path": "X"}
        if symbols:
            options["featureLabels"] = {"path": f"var/{symbols}"}
        lists.append("featureList")
    file = {
        "fileType": "anndata.zarr",
        "url": url,
        "options": options,
        "coordinationValues": {"obsType": "cell", "featureType": "gene"},
    }
    return {
        "version": _VERSION,
        "name": title,
        "description": "",
        "datasets": [{"uid": "A", "name": title, "files": [file]}],
        "coordinationSpace": {
            "dataset": {"A": "A"},
            "obsType": {"cell": "cell"},
            "featureType": {"gene": "gene"},
            "embeddingType": {name: name for name in embeddings},
        },
        "layout": [*_maps(list(embeddings)), *_lists(lists)],
        "initStrategy": "auto",
    }


def _maps(names: list[str]) -> list[dict[str, Any]]:
    """The maps, side by side in two thirds of the page, which is 12 wide and 12 high."""
    width = 8 // len(names)
    shared = {**_SHARED, "featureType": "gene"}
    return [
        _view("scatterplot", (width * place, 0, width, 12), {**shared, "embeddingType": name})
        for place, name in enumerate(names)
    ]


def _lists(components: list[str]) -> list[dict[str, Any]]:
    """What can be chosen from, below each other in the last third."""
    height = 12 // max(len(components), 1)
    return [
        _view(component, (8, height * place, 4, height), {**_SHARED, "featureType": "gene"})
        for place, component in enumerate(components)
    ]


def _view(component: str, place: tuple[int, ...], scopes: Mapping[str, str]) -> dict[str, Any]:
    return {
        "component": component,
        "coordinationScopes": dict(scopes),
        **dict(zip("xywh", place, strict=True)),
    }
