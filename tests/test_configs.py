"""Pretraining configurations as documents: what stands at their top, and the paper's recipe."""

import re
from pathlib import Path

import pytest

from geneformer_jax.model.config import preset
from geneformer_jax.training.config import PretrainConfig, pretrain_config, typed_config
from tests.helpers.configs import CONFIGS, load


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_command_hardware_hours_and_loss_stand_at_the_top(path: Path):
    head = path.read_text().split('"""')[1]
    assert re.search(rf"^  python -m geneformer_jax\.\w+ --config=configs/{path.name}", head, re.M)
    for what in ("Hardware: ", "Hours: ", "Loss: "):
        assert re.search(rf"^{what}\S", head, re.M), f"{path.name} does not state {what}"


def configuration(name: str) -> PretrainConfig:
    return load(Path(__file__).parents[1] / "configs" / f"{name}.py")


@pytest.mark.parametrize("name", ["pretrain_v1_10m", "pretrain_v1_10m_v100"])
def test_v1_10m_is_trained_by_the_papers_recipe(name):
    config = configuration(name)
    assert config.encoder(25_426) == preset("v1_10m", dropout=0.02, attention_dropout=0.02)
    assert config.data.cells_per_batch == 12 * 12
    assert config.data.tokens_per_batch == 0
    optimizer = config.optimizer
    recipe = (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps)
    assert recipe == (1e-3, "linear", 10_000)
    assert optimizer.weight_decay == 0.001
    assert (config.epochs, config.steps) == (3, 0)


def test_fused_attention_can_run_where_the_configurations_of_v2_count_on_it():
    for name in ("pretrain_v2_104m", "pretrain_v2_316m", "continue_cancer"):
        config = configuration(name)
        assert config.model["attention_dropout"] == 0
        assert config.runtime.precision == "bfloat16"
        assert config.model["dropout"] == 0.1


def test_defaults_name_no_hardware():
    runtime = typed_config(pretrain_config("v1_10m")).runtime
    assert (runtime.precision, runtime.attention) == ("float32", "auto")
