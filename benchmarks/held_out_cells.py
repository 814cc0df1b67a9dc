"""Judges models on cells that they were not trained on, beside components of counts: tables.

    python benchmarks/held_out_cells.py --cells=FOLDER [--checkpoint=demo-blood,longer=RUN]
        [--part=types] [--output=FILE.json]

FOLDER holds pbmc3k, pbmc_facs_zheng, pbmc_ifnb_kang, aml_bone_marrow_vangalen and combat_covid as
h5ad. Embeddings are taken as they are, none is fine-tuned. Beside the models stand random weights
of the same shape, and PCA(50) of log counts, which is fitted on the judged cells themselves: it has
seen what the models have not. The sorted cells are of the donor whose frozen cells demo-blood is
trained on (donor A of Zheng et al. 2017), so they are other cells, not another person's. Parts:
  types      accuracy of 15 neighbours in 5 folds, its difference to PCA's with the 95 % interval
             over cells, and macro F1 of logistic regression
  draws      the same accuracy in ten draws of 200, 500, 1,000 and 2,000 cells, PCA fitted on each
  scib       measures of quality, those of scIB included (needs the extra "quality")
  mixing     the same of PBMC 3k and FACS-sorted cells together, by the types that both have, the
             data sets being batches
  donors     AML beside healthy bone marrow and COVID-19 beside healthy blood, by logistic
             regression with whole persons held out (demo-blood was trained on cells of four of the
             six COMBAT donors, without their condition); clusters of the marrow, persons being
             batches; the two other COMBAT donors by neighbours, where condition and donor are one
  deletions  share of the variance of the shifts within a cell that the rank of the deleted gene
             explains alone: single deletions, each made exactly, of genes drawn at random
"""

import functools
import json
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from absl import app, flags
from scipy import stats
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict

import geneformer_jax as gf
from geneformer_jax.attention_analysis.layers import bootstrap_interval
from geneformer_jax.common.files import atomic_write
from geneformer_jax.embedding.label_accuracy import (
    FOLDS,
    label_accuracy,
    log_count_components,
    named_rightly,
)
from geneformer_jax.embedding.quality import measure_quality
from geneformer_jax.inference.finite import require_finite
from geneformer_jax.inference.random_control import RANDOM, random_model
from geneformer_jax.label_transfer.classifiers import CLASSIFIERS, REGRESSION
from geneformer_jax.perturbation.statistics.rank_effect import variance_by_rank

CELLS = flags.DEFINE_string("cells", None, "folder of the h5ad files", required=True)
CHECKPOINTS = flags.DEFINE_list("checkpoint", ["demo-blood"], "models, each NAME or NAME=PATH")
OUTPUT = flags.DEFINE_string("output", "", "JSON file of all tables")
DELETED_CELLS = flags.DEFINE_integer("deleted_cells", 200, "cells to delete genes in")
DELETED_FRACTION = flags.DEFINE_float(
    "deleted_fraction", 0.1, "of the genes, to be deleted one by one", 0.0, 1.0
)

PCA = "PCA(50)"
SEED, DRAWS, SIZES, RESAMPLES = 0, 10, (200, 500, 1_000, 2_000), 200
PBMC, SORTED, STIMULATED = "pbmc3k", "pbmc_facs_zheng", "pbmc_ifnb_kang"
MARROW, COMBAT = "aml_bone_marrow_vangalen", "combat_covid"
LABEL = {PBMC: "cell_type", SORTED: "celltype", STIMULATED: "stim"}
UNLABELLED, SHARED_TYPE, DATA_SET, PERSON = "unlabelled", "shared type", "data set", "person"
# demo-blood is trained on the other four donors.
NEVER_SEEN = "H00053", "S00040"
# What the names of both data sets have in common. PBMC 3k's were given to clusters, those of sorted
# cells by antibodies. Of no shared type: FCGR3A+ Mono, DC and Platelet; CD34+.
SHARED_TYPES = {
    PBMC: {
        "B": "B",
        "CD14+ Mono": "CD14+ monocyte",
        "NK": "NK",
        "CD8 T": "CD8 T",
        "Naive CD4 T": "CD4 T",
        "Memory CD4 T": "CD4 T",
    },
    SORTED: {
        "CD19+ B": "B",
        "CD14+ Monocyte": "CD14+ monocyte",
        "CD56+ NK": "NK",
        "CD8+ Cytotoxic T": "CD8 T",
        "CD8+/CD45RA+ Naive Cytotoxic": "CD8 T",
        "CD4+ T Helper2": "CD4 T",
        "CD4+/CD25 T Reg": "CD4 T",
        "CD4+/CD45RA+/CD25- Naive T": "CD4 T",
        "CD4+/CD45RO+ Memory": "CD4 T",
    },
}


class Held(NamedTuple):
    """Cells to judge by.

    Attributes:
      counts: raw counts [cells, genes].
      embeddings: name of a model -> [cells, D].
    """

    counts: ad.AnnData
    embeddings: dict[str, np.ndarray]

    def take(self, rows):
        embeddings = {name: each[rows] for name, each in self.embeddings.items()}
        return Held(self.counts[rows].copy(), embeddings)

    def representations(self):
        """Returns PCA of just these cells, and what the models make of them."""
        totals = self.counts.obs["n_counts"].to_numpy()
        return {PCA: log_count_components(self.counts.X, totals), **self.embeddings}


class Judged:
    """Models, and cells embedded by each of them."""

    def __init__(self, folder, models):
        self.folder, self.models = folder, models
        self.held = functools.cache(self._held)

    def counts(self, name):
        counts = ad.read_h5ad(self.folder / f"{name}.h5ad")
        label = LABEL.get(name)
        return counts if label is None else counts[counts.obs[label] != UNLABELLED].copy()

    def _held(self, name):
        counts = self.counts(name)
        embeddings = {}
        for model_name, model in self.models.items():
            found = gf.embed_cells(model, counts, all_cells=True).obsm["X_geneformer"]
            require_finite(found, counts.obs_names, f"{model_name}'s embeddings of {name}")
            embeddings[model_name] = found
        return Held(counts, embeddings)


def load_models(given):
    """Returns name -> model of each NAME=PATH, and random weights of each shape that they have."""
    models, shapes = {}, {}
    for each in given:
        name, _, path = each.partition("=")
        models[name] = gf.load_model(path or name)
        shapes.setdefault(models[name].config, name)
    for config, name in shapes.items():
        label = RANDOM if len(shapes) == 1 else f"{RANDOM}, shape of {name}"
        models[label] = random_model(next(m for m in models.values() if m.config == config))
    return models


def beside_components(hits):
    """Returns accuracies and their differences to PCA's, with 95 % intervals over cells.

    Args:
      hits: name -> bool [cells], whether the label of each cell was named rightly.
    """
    rows = {}
    for name, each in hits.items():
        apart = each.astype(float) - hits[PCA]
        low, high = bootstrap_interval(apart)
        rows[name] = {
            "neighbours": each.mean(),
            "minus PCA": apart.mean(),
            "low": low,
            "high": high,
        }
    return pd.DataFrame(rows).T


def by_regression(features, labels, folds, groups=None):
    """Returns the label [cells] that logistic regression on other folds gives each cell."""
    classifier = CLASSIFIERS[REGRESSION](len(labels))
    return cross_val_predict(classifier, features, labels, cv=folds, groups=groups)


def judge_labels(held, label):
    """Returns the table of the part "types" for a column of labels."""
    labels = held.counts.obs[label].astype(str).to_numpy()
    representations = held.representations()
    table = beside_components({n: named_rightly(x, labels) for n, x in representations.items()})
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    table["macro F1"] = [
        f1_score(labels, by_regression(features, labels, folds), average="macro")
        for features in representations.values()
    ]
    return table


def types(judged):
    for name, label in LABEL.items():
        held = judged.held(name)
        kinds = f"{held.counts.obs[label].nunique()} labels"
        yield f"{name}, {len(held.counts):,} cells, {kinds}", judge_labels(held, label)


def draws(judged):
    for name, label in LABEL.items():
        held, rows = judged.held(name), []
        # A draw of all cells is no draw.
        for size in (size for size in SIZES if size < len(held.counts)):
            for seed in range(DRAWS):
                drawn = np.random.default_rng(seed).permutation(len(held.counts))[:size]
                part = held.take(np.sort(drawn))
                for shown, features in part.representations().items():
                    accuracy = label_accuracy(features, part.counts.obs[label]).accuracy
                    rows.append((size, seed, shown, accuracy))
        yield f"{name}, {DRAWS} draws", summarise_draws(rows)


def summarise_draws(rows):
    """Returns means over draws, and how often each representation was ahead of PCA.

    Args:
      rows: (cells, seed, representation, accuracy).
    """
    frame = pd.DataFrame(rows, columns=["cells", "seed", "of", "accuracy"])
    by_draw = frame.pivot(index=["cells", "seed"], columns="of", values="accuracy")
    parts = []
    for name in frame["of"].unique():
        apart = by_draw[name] - by_draw[PCA]
        columns = {
            "mean": by_draw[name].groupby("cells").mean(),
            "minus PCA": apart.groupby("cells").mean(),
            "sd": apart.groupby("cells").std(),
            "least": apart.groupby("cells").min(),
            "draws ahead": (apart > 0).groupby("cells").sum(),
        }
        parts.append(pd.DataFrame(columns).assign(of=name))
    return pd.concat(parts).set_index("of", append=True).sort_index(level=0, sort_remaining=False)


def scib(judged):
    for name, label in LABEL.items():
        held = judged.held(name)
        table = measure_quality(held.representations(), held.counts.obs, label)
        yield f"{name}, {len(held.counts):,} cells", table.T


def mixing(judged):
    parts = []
    for name, shared in SHARED_TYPES.items():
        held = judged.held(name)
        part = held.take(held.counts.obs[LABEL[name]].isin(shared).to_numpy())
        part.counts.var_names = part.counts.var["ensembl_id"]
        part.counts.obs[SHARED_TYPE] = part.counts.obs[LABEL[name]].astype(str).map(shared)
        parts.append(part)
    counts = ad.concat(dict(zip(SHARED_TYPES, [part.counts for part in parts], strict=True)),
                       join="inner", label=DATA_SET, index_unique=" of ")  # fmt: skip
    embeddings = {n: np.concatenate([part.embeddings[n] for part in parts]) for n in judged.models}
    both = Held(counts, embeddings)
    title = f"{' and '.join(SHARED_TYPES)}, {len(counts):,} cells, batch: data set"
    yield title, measure_quality(both.representations(), counts.obs, SHARED_TYPE, DATA_SET).T


def donors(judged):
    marrow = judged.held(MARROW)
    # BM5's CD34+ and CD34+ CD38- cells are two donors there.
    marrow.counts.obs[PERSON] = marrow.counts.obs["donor"].astype(str).str.split("-").str[0]
    folds = GroupKFold(FOLDS)
    yield from by_person(MARROW, marrow, PERSON, folds)
    yield f"{MARROW}, condition, persons not held out", judge_labels(marrow, "condition")
    table = measure_quality(marrow.representations(), marrow.counts.obs, "seurat_clusters", PERSON)
    yield f"{MARROW}, seurat_clusters, batch: person", table.T
    combat = judged.held(COMBAT)
    yield from by_person(COMBAT, combat, "donor", GroupKFold(combat.counts.obs["donor"].nunique()))
    unseen = combat.take(combat.counts.obs["donor"].isin(NEVER_SEEN).to_numpy())
    title = f"{COMBAT}, donors {' and '.join(NEVER_SEEN)}, {len(unseen.counts):,} cells"
    yield title, judge_labels(unseen, "condition")


def by_person(name, held, person, folds):
    """Yields what logistic regression tells of the condition of persons it was not given."""
    obs = held.counts.obs
    labels, persons = obs["condition"].astype(str).to_numpy(), obs[person].to_numpy()
    rows = {}
    for shown, features in held.representations().items():
        told = by_regression(features, labels, folds, persons)
        by_each = pd.Series(told == labels).groupby(persons, observed=True).mean()
        rows[shown] = {
            "accuracy": (told == labels).mean(),
            "macro F1": f1_score(labels, told, average="macro"),
            "persons told by most of their cells": (by_each > 0.5).sum(),
        }
    commonest = pd.Series(labels).value_counts(normalize=True).iloc[0]
    title = f"{name}, condition, {obs[person].nunique()} persons in {folds.n_splits} folds"
    yield f"{title}; the commonest is {commonest:.3f} of the cells", pd.DataFrame(rows).T


def deletions(judged):
    counts = judged.counts(PBMC)
    known = [set(model.vocabulary.gene_ids) for model in judged.models.values()]
    genes = sorted(set(counts.var["ensembl_id"]).intersection(*known))
    drawn = np.random.default_rng(SEED).permutation(genes)
    drawn = drawn[: max(1, round(DELETED_FRACTION.value * len(genes)))].tolist()
    for name, model in judged.models.items():
        shifts = gf.perturb_cells(
            model, counts, genes=drawn, max_cells=DELETED_CELLS.value, seed=SEED
        )
        rows = {}
        for measure, part in shifts.groupby("measure", observed=True):
            low, high = shares_over_cells(part)
            rows[measure] = {
                "share": share_by_rank(part), "low": low, "high": high,
                "cells": part["cell"].nunique(), "deletions": len(part),
            }  # fmt: skip
        title = f"{PBMC}, {len(drawn):,} of {len(genes):,} genes deleted, {name}"
        yield title, pd.DataFrame(rows).T


def share_by_rank(shifts):
    return variance_by_rank([shifts])["explained"].iloc[0]


def shares_over_cells(shifts):
    """Returns the 95 % interval of the share of one measure, by bootstrap over cells."""
    cells = [part for _, part in shifts.groupby("cell", observed=True)]

    def of_drawn(drawn):
        parts = [cells[number] for number in drawn]
        own = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return share_by_rank(pd.concat(parts).assign(cell=own))

    found = stats.bootstrap(
        (np.arange(len(cells)),), of_drawn, vectorized=False, method="percentile",
        n_resamples=RESAMPLES, rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return found.confidence_interval


PARTS = {each.__name__: each for each in (types, draws, scib, mixing, donors, deletions)}
PART = flags.DEFINE_multi_enum("part", list(PARTS), list(PARTS), "of these only")


def write(tables):
    found = {
        "benchmark": "held_out_cells",
        "checkpoints": CHECKPOINTS.value,
        "versions": {name: version(name) for name in ("geneformer_jax", "jax", "scikit-learn")},
        "tables": tables,
    }
    with atomic_write(OUTPUT.value) as aside:
        aside.write_text(json.dumps(found, indent=1))


def main(_):
    judged, tables = Judged(Path(CELLS.value), load_models(CHECKPOINTS.value)), []
    for part in PART.value:
        for title, table in PARTS[part](judged):
            print(f"\n{part}: {title}\n{table.round(3).to_string()}", flush=True)
            rows = json.loads(table.to_json(orient="table", index=True))["data"]
            tables.append({"part": part, "title": title, "rows": rows})
            # After each, so that a run that ends early leaves what it has.
            if OUTPUT.value:
                write(tables)


if __name__ == "__main__":
    app.run(main)
