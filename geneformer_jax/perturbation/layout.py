"""Names of the files and columns of a perturbation's output folder."""

from geneformer_jax.common.provenance import FILE_NAME

SHIFTS, GENE_SHIFTS, GENE_MEANS = "shifts", "gene_shifts", "gene_shift_means.parquet"
EDITS, STATES, REPORT = "edits.parquet", "states.parquet", "report.html"
GENES_LEFT_OUT = "genes_left_out.tsv"
# The perturbed cells: `cell`, and their obs columns as texts, each with this before its name.
CELLS, OBS = "cells.parquet", "obs:"
# What a comparison of two states says of genes without a model.
BASELINES = "baselines.parquet"
# What its differential expression is of.
COUNTS, RANKS = "counts", "ranks"
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
# Positions of a cell at which a screen moves later genes up exactly, by default.
SPLIT_POINTS = 12
# What stands for a cell: the mean of its genes, or `<cls>`.
CELL, CLS = MODES = ("cell", "cls")
# How an edit of a screen was made.
ESTIMATED, EXACT = METHODS = ("estimated", "exact")

# Headings of the columns of statistics, and what they say.
WORDS = {
    "Gene_name": "gene",
    "Ensembl_ID": "gene id",
    "N_Detections": "cells",
    "N_Detections_test": "cells",
    "N_Detections_null": "null cells",
    "Shift_to_goal_end": "shift to goal",
    "Goal_end_vs_random_pval": "p",
    "Goal_end_FDR": "FDR",
    "Goal_end_effect_size": "effect size",
    "Sig": "FDR < 0.05",
    "State": "state",
    "Cosine_sim_mean": "mean cosine",
    "Cosine_sim_stdev": "standard deviation",
    "Test_avg_shift": "mean shift",
    "Null_avg_shift": "mean shift of null cells",
    "Test_vs_null_avg_shift": "difference",
    "Test_vs_null_pval": "p",
    "Test_vs_null_FDR": "FDR",
    "Test_vs_null_effect_size": "effect size",
    "Combo_minus_sum_shift": "observed minus sum",
    "Combo_vs_sum_FDR": "FDR of that",
    "Combo_minus_strongest_shift": "observed minus strongest",
}
MEANINGS = {
    "Gene_name": "symbol of the edited gene, those of a set joined by +",
    "Ensembl_ID": "its gene id",
    "N_Detections": "cells in which the edit was made: read nothing from a few",
    "N_Detections_test": "cells of this perturbation in which the edit was made",
    "N_Detections_null": "cells of the other one",
    "Shift_to_goal_end": "mean over cells of what the edit adds to the cosine with the goal; above "
    "0 towards it",
    "Goal_end_vs_random_pval": "two-sided rank-sum test of the edit's cells against those of all "
    "edits",
    "Goal_end_FDR": "the same, adjusted over edits (Benjamini and Hochberg)",
    "Goal_end_effect_size": "rank-biserial correlation of that test, from -1 to 1",
    "Sig": "1 where that FDR is below 0.05",
    "State": "state that the shift is towards; empty without",
    "Cosine_sim_mean": "mean over cells of the cosine of before with after (1: nothing moved); "
    "with a state, of what the edit adds to the cosine with it",
    "Cosine_sim_stdev": "standard deviation of these over cells",
    "Test_avg_shift": "mean shift over the cells of this perturbation",
    "Null_avg_shift": "mean shift over the cells of the other one",
    "Test_vs_null_avg_shift": "the one minus the other",
    "Test_vs_null_pval": "two-sided rank-sum test of the one against the other",
    "Test_vs_null_FDR": "the same, adjusted over edits",
    "Test_vs_null_effect_size": "rank-biserial correlation of that test, from -1 to 1",
    "Impact_component": "1 where the mean belongs to the component with the lower mean",
    "Impact_component_percent": "percent of the edit's cells that belong to it",
    "Estimated_fraction": "fraction of the edit's cells in which the shift is a screen's estimate",
}
