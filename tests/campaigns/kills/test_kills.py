"""Commands that are killed and given again end as if nothing had happened."""

import random
import shutil

import pytest

from tests.campaigns.kills.campaign import Arena, Campaign
from tests.campaigns.kills.commands import COMMANDS, write_counts, write_inputs
from tests.campaigns.kills.moments import moments
from tests.campaigns.kills.outputs import contents, differences
from tests.helpers.commands import run_command

KILLS = 100
REBOOTS = 20
PAIRS = 10
MOMENTS = {"slow": 40, "quick": 3}
WITHOUT_JAX = ("build_vocabulary", "tokenize")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What all commands are given."""
    folder = tmp_path_factory.mktemp("killed") / "inputs"
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def few_counts(tmp_path_factory):
    """What commands are given that read counts, and no more."""
    folder = tmp_path_factory.mktemp("killed") / "inputs"
    write_counts(folder, files="ab", cells=8)
    return folder


@pytest.mark.parametrize("name", WITHOUT_JAX)
def test_a_few_moments_of_a_kill(name, few_counts, tmp_path, monkeypatch, capsys):
    assert_harmless(name, "quick", few_counts, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_moments_of_a_kill(name, inputs, tmp_path, monkeypatch, capsys):
    assert_harmless(name, "slow", inputs, tmp_path, monkeypatch, capsys)


def assert_harmless(name, kind, inputs, tmp_path, monkeypatch, capsys):
    """Gives a command again on what a kill would have left, and compares."""
    output = tmp_path / "output"
    output.mkdir()
    COMMANDS[name].prepare(monkeypatch)

    def run():
        arguments = COMMANDS[name].arguments_in(inputs, output)
        status, _, error = run_command(COMMANDS[name].name, arguments, monkeypatch, capsys)
        assert status == 0, error

    kept = moments(monkeypatch, output, tmp_path / "copies", run)
    expected = contents(output)
    assert len(kept) > 10
    chosen = random.Random(0).sample(range(len(kept)), min(MOMENTS[kind], len(kept)))
    for moment in chosen:
        shutil.rmtree(output)
        shutil.copytree(kept[moment], output)
        run()
        assert differences(contents(output), expected) == [], f"moment {moment} of {len(kept)}"


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    """Where processes live that are killed."""
    return Arena(tmp_path_factory.mktemp("arena"))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("name", COMMANDS)
def test_kills(name, arena):
    campaign = Campaign(arena, name, seed=0)
    assert campaign.faults == []
    assert [trial for trial in campaign.trials(KILLS) if trial.faults] == []
    assert [trial for trial in campaign.trials(REBOOTS, reboots=True) if trial.faults] == []
    assert [pair for pair in (campaign.two_at_once() for _ in range(PAIRS)) if pair.faults] == []
