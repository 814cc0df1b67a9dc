"""Nothing leaks in the paper's tasks: with shuffled labels each of them gives an AUC of 0.5."""

import pytest

from geneformer_jax.cells.formats.anndata_source import AnnDataSource
from geneformer_jax.cells.tokenization.tokenizer import (
    TokenizedCells,
    TokenizerOptions,
    tokenize_source,
)
from geneformer_jax.finetuning.classification.baselines import (
    RANKS,
    SVM,
    baseline_predictions,
    features_of,
    rank_matrix,
)
from geneformer_jax.finetuning.classification.config import TaskConfig
from geneformer_jax.finetuning.classification.controls import (
    SHUFFLED,
    permuted_aucs,
    summarise_control,
)
from geneformer_jax.finetuning.classification.protocol import prepare_task
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary

pytestmark = pytest.mark.reference_data
PERMUTATIONS = 12
GENE_LISTS = (
    ("dosage_sensitivity_TFs", "refuse"),
    ("bivalent_vs_lys4_only", "drop"),
    ("bivalent_vs_no_methyl", "drop"),
    ("tf_regulatory_range", "refuse"),
    ("n1_network", "refuse"),
    ("n1_target", "refuse"),
)


@pytest.fixture(scope="module")
def tokenized(data_dir):
    """Function from a file's name to some of its cells, tokenised for V1."""
    import anndata as ad

    vocabulary = read_original_vocabulary(data_dir / "dictionaries" / "v1_gc30M")

    def tokenize(name: str, every: int) -> TokenizedCells:
        adata = ad.read_h5ad(data_dir / "cells" / f"{name}.h5ad")[::every].copy()
        return tokenize_source(AnnDataSource(adata), vocabulary, TokenizerOptions(max_length=2_048))

    return tokenize


@pytest.fixture(scope="module")
def blood(tokenized):
    """383 blood cells of six donors: many genes each."""
    return tokenized("combat_covid", 12)


def control(config: TaskConfig, cells: TokenizedCells) -> dict:
    task = prepare_task(config, cells)
    features = features_of(task, RANKS, rank_matrix(task.cells))
    aucs = permuted_aucs(
        task, lambda each: baseline_predictions(each, features, SVM), SHUFFLED, PERMUTATIONS
    )
    return summarise_control(SVM, SHUFFLED, aucs, 1.0)


def check(found: dict) -> None:
    assert found["low"] < 0.5 < found["high"], found
    assert found["high"] - found["low"] < 0.25


@pytest.mark.parametrize(("name", "conflicts"), GENE_LISTS, ids=[name for name, _ in GENE_LISTS])
def test_shuffled_labels_of_genes_give_one_half(blood, data_dir, name, conflicts):
    config = TaskConfig(genes=str(data_dir / "genes" / f"{name}.tsv"), gene_conflicts=conflicts)
    check(control(config, blood))


def test_shuffled_labels_of_cell_types_give_one_half(tokenized):
    config = TaskConfig(unit="cell", label="cell_type", min_fraction=0.02)
    check(control(config, tokenized("pbmc3k", 9)))


def test_shuffled_diseases_of_donors_give_one_half(tokenized):
    """Whole donors change their label: cells of one donor always look alike."""
    cells = tokenized("aml_bone_marrow_vangalen", 4)
    found = control(TaskConfig(unit="cell", label="condition", group="donor"), cells)
    assert found["low"] < 0.5 < found["high"], found
