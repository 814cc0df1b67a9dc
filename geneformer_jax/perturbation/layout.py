"""Names of the files and columns of a perturbation's output folder."""

from geneformer_jax.common.provenance import FILE_NAME

SHIFTS, GENE_SHIFTS, GENE_MEANS = "shifts", "gene_shifts", "gene_shift_means.parquet"
EDITS, STATES, REPORT = "edits.parquet", "states.parquet", "report.html"
GENES_LEFT_OUT = "genes_left_out.tsv"
# The perturbed cells: `cell`, and their obs columns as texts, each with this before its name.
CELLS, OBS = "cells.parquet", "obs:"
# What a comparison of two states says of genes without a model.
BASELINES = "baselines.parquet"
# Of controls: the same run with random weights; shifts along states without the deleted gene.
RANDOM_RUN, WITHOUT_OWN = "random_weights", "self_deletion.parquet"
# All else in the folder of a run is gone when it is finished.
OUTPUTS = (EDITS, STATES, SHIFTS, GENE_SHIFTS, GENE_MEANS, CELLS, BASELINES, GENES_LEFT_OUT,
           FILE_NAME)  # fmt: skip
JOINT = "+"
# Gene shifts as means, of each part of an unfinished run.
MEANS_OF_PARTS = "means"
# What a screen estimated, of each part, until it is settled.
ESTIMATES = "estimates"
# How an edit of a screen was made.
ESTIMATED, EXACT = METHODS = ("estimated", "exact")
