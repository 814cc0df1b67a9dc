"""Commands that are killed and given again end as if nothing had happened."""

import random
import shutil

import pytest

from tests.campaigns.kills.campaign import Arena, Campaign
from tests.campaigns.kills.commands import COMMANDS
from tests.campaigns.kills.moments import moments
from tests.campaigns.kills.outputs import contents, differences
from tests.helpers.commands import run_command
from tests.helpers.toy import toy_cells, toy_vocabulary

KILLS = 100
QUICK_KILLS = 3


@pytest.mark.parametrize("name", ["build_vocabulary", "tokenize"])
@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_moments_of_a_kill(name, few, tmp_path, monkeypatch, capsys):
    inputs, output = tmp_path / "inputs", tmp_path / "output"
    (inputs / "counts").mkdir(parents=True)
    output.mkdir()
    for seed, file in enumerate("ab"):
        adata = toy_cells(8, seed)
        adata.obs_names = [f"{file}{number}" for number in range(adata.n_obs)]
        adata.write_h5ad(inputs / "counts" / f"{file}.h5ad")
    toy_vocabulary().save(inputs / "vocabulary")

    def run():
        arguments = COMMANDS[name].arguments_in(inputs, output)
        status, _, error = run_command(name, arguments, monkeypatch, capsys)
        assert status == 0, error

    kept = moments(monkeypatch, output, tmp_path / "copies", run)
    expected = contents(output)
    assert len(kept) > 20
    chosen = random.Random(0).sample(range(len(kept)), QUICK_KILLS if few else len(kept))
    for moment in chosen:
        shutil.rmtree(output)
        shutil.copytree(kept[moment], output)
        run()
        assert differences(contents(output), expected) == [], f"moment {moment} of {len(kept)}"


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("name", COMMANDS)
def test_kills(name, tmp_path):
    campaign = Campaign(Arena(tmp_path), name, seed=0)
    assert campaign.faults == []
    faulty = [trial for trial in campaign.trials(KILLS) if trial.faults]
    assert faulty == []
