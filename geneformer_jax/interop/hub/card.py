"""The card of a model on the hub, made from what its run wrote down."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from geneformer_jax.common.provenance import (
    FILE_NAME,
    HELD_OUT_TABLE,
    RESULTS_TABLE,
    read_provenance,
)
from geneformer_jax.common.tables import read_csv
from geneformer_jax.interop.weights.bert_layout import architecture_of
from geneformer_jax.model.heads import GENES
from geneformer_jax.model.pretrained import PretrainedModel

CARD = "README.md"
_TEMPLATE = Path(__file__).with_name("card.md")
# A run's folder is so many levels above its checkpoints at most.
_LEVELS = 7
_COLUMNS = ("method", "loss", "accuracy", "perplexity", "macro_f1", "auc", "masked_genes", "rows")
_NO_FIGURES = (
    "None are recorded beside these weights. Measure the model on cells that it has not seen, "
    "beside baselines, before relying on it."
)


def write_card(model: PretrainedModel, folder: Path, name: str, license: str = "") -> None:
    """Writes README.md, the card, into the folder that is going to the hub.

    Args:
      model: with its vocabulary.
      folder: of its files.
      name: on the hub.
      license: of the weights; "" where it is not said.
    """
    run = _run_of(model)
    provenance = read_provenance(run) if run else {}
    text = jinja2.Template(_TEMPLATE.read_text(), undefined=jinja2.StrictUndefined).render(
        header=_header(model, license),
        name=name,
        config=model.config,
        weights=sum(_sizes(model.params)),
        species=model.vocabulary.species,
        genes=len(model.vocabulary.gene_ids),
        vocabulary=model.vocabulary.hash[:12],
        architecture=architecture_of(model.head, model.is_bare),
        purpose=_purpose(model),
        usage=_usage(model),
        training=_describe_training(model, provenance),
        figures=_describe_figures(run, provenance.get("command", "")),
        software=_describe_software(provenance),
        licence=f"Licence of the weights: {license}." if license else "No licence is stated.",
    )
    (folder / CARD).write_text(text)


def _run_of(model: PretrainedModel) -> Path | None:
    """Returns the folder in which the model was trained, if its provenance is there."""
    place = Path(model.source)
    near = (place, *place.parents)[:_LEVELS] if place.exists() else ()
    return next((folder for folder in near if (folder / FILE_NAME).is_file()), None)


def _header(model: PretrainedModel, license: str) -> str:
    tags = ["single-cell", "transcriptomics", "geneformer", "biology"]
    content: dict[str, Any] = {"library_name": "transformers", "tags": tags}
    if license:
        content["license"] = license
    # JSON is YAML.
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in content.items())


def _sizes(params: Mapping[str, Any]) -> list[int]:
    import jax

    return [leaf.size for leaf in jax.tree.leaves(params)]


def _purpose(model: PretrainedModel) -> str:
    if model.is_bare:
        return "It has no head: it embeds cells and genes."
    if model.head is None:
        return "It was trained to predict masked genes."
    unit = "genes" if model.head.kind == GENES else "cells"
    labels = model.head.labels
    shown = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
    return f"It classifies {unit}: {shown}."


def _usage(model: PretrainedModel) -> str:
    if model.head is None:
        return "embedded = gf.embed_cells(model, adata)   # raw counts in, .obsm out"
    unit = "genes" if model.head.kind == GENES else "cells"
    return f"predicted = gf.predict_{unit}(model, adata)   # raw counts in"


def _describe_training(model: PretrainedModel, provenance: Mapping[str, Any]) -> str:
    if provenance.get("command") not in ("pretrain", "finetune"):
        return "How these weights were trained is not recorded beside them."
    counts, config = provenance["counts"], provenance["configuration"]
    inputs = ", ".join(f"`{each['name']}`" for each in provenance["inputs"]) or "not named"
    cells = ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in counts.items())
    optimizer, runtime = config["optimizer"], config["runtime"]
    lines = [
        f"`{provenance['command']}` for {model.step:,} updates on {inputs}: {cells}.",
        f"AdamW, learning rate {optimizer['learning_rate']:g} ({optimizer['schedule']}), weight "
        f"decay {optimizer['weight_decay']:g}, {config['data']['cells_per_batch']:,} cells a batch "
        f"(0: by tokens), precision {runtime['precision']}, seed {config['seed']}.",
    ]
    if base := config.get("source"):
        lines.append(f"Fine-tuned from `{Path(base).name}`.")
    return "\n".join(lines)


def _describe_figures(run: Path | None, command: str) -> str:
    """Returns a table of held-out figures, the model's and those of baselines."""
    path = _table_of(run, command) if run else None
    if path is None:
        return _NO_FIGURES
    table = read_csv(path)
    return "\n".join(_markdown(table[[name for name in _COLUMNS if name in table]]))


def _table_of(run: Path, command: str) -> Path | None:
    if command == "pretrain":
        return path if (path := run / HELD_OUT_TABLE).is_file() else None
    # Above the network of a fold, in the folder of the run.
    folders = [each for each in (run, *run.parents)[:_LEVELS] if (each / RESULTS_TABLE).is_file()]
    is_own = folders and read_provenance(folders[0]).get("command") == command
    return folders[0] / RESULTS_TABLE if is_own else None


def _markdown(table: pd.DataFrame) -> list[str]:
    heads = [name.replace("_", " ") for name in table]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in table.itertuples(index=False):
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _describe_software(provenance: Mapping[str, Any]) -> str:
    packages = provenance.get("packages", {})
    named = [f"{name} {packages[name]}" for name in ("geneformer_jax", "jax") if name in packages]
    return f"They were trained with {', '.join(named)}." if named else ""
