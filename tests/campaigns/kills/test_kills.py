"""Commands that are killed and given again end as if nothing had happened."""

import random
import shutil

import pytest

from tests.campaigns.kills.campaign import Arena, Campaign
from tests.campaigns.kills.cluster_lives import ForkedLife, RayLife
from tests.campaigns.kills.clusters import ClusterCampaign, short_folder
from tests.campaigns.kills.commands import COMMANDS, write_counts
from tests.campaigns.kills.moments import moments
from tests.campaigns.kills.outputs import contents, differences
from tests.helpers.commands import run_command

KILLS = 100
REBOOTS = 20
PAIRS = 10
# Ray takes many seconds to begin.
CLUSTER_KILLS = {
    ("tokenize", ForkedLife): 100,
    ("perturb", ForkedLife): 20,
    ("tokenize", RayLife): 40,
    ("perturb", RayLife): 10,
}
CLUSTER_PAIRS = 5
FEW_MOMENTS = 3


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["build_vocabulary", "tokenize"])
def test_moments_of_a_kill(name, few, tmp_path, monkeypatch, capsys):
    inputs, output = tmp_path / "inputs", tmp_path / "output"
    write_counts(inputs, files="ab", cells=8)
    output.mkdir()

    def run():
        arguments = COMMANDS[name].arguments_in(inputs, output)
        status, _, error = run_command(name, arguments, monkeypatch, capsys)
        assert status == 0, error

    kept = moments(monkeypatch, output, tmp_path / "copies", run)
    expected = contents(output)
    assert len(kept) > 20
    chosen = random.Random(0).sample(range(len(kept)), FEW_MOMENTS if few else len(kept))
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


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(("name", "kind"), CLUSTER_KILLS)
def test_kills_of_a_cluster(name, kind, needs_ray):
    with short_folder() as folder:
        campaign = ClusterCampaign(folder, name, 0, kind)
        assert campaign.faults == []
        trials = campaign.trials(CLUSTER_KILLS[name, kind])
        assert [trial for trial in trials if trial.faults] == []
        pairs = (campaign.two_at_once() for _ in range(CLUSTER_PAIRS))
        assert [pair for pair in pairs if pair.faults] == []
