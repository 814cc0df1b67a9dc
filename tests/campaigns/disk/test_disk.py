"""Commands on disks that fail, or show late what others wrote: one line, or the same output."""

import pytest

from tests.campaigns.disk.campaign import FINE, run_cases
from tests.campaigns.disk.commands import COMMANDS
from tests.campaigns.disk.late import SCENES
from tests.campaigns.disk.layer import HARMLESS, is_possible

pytestmark = pytest.mark.skipif(not is_possible(), reason="faults need Linux and gcc")


def test_a_vocabulary_on_a_few_failing_disks(tmp_path):
    faults = ["no space amid a write", "read-only", "no flushing of folders"]
    lines = list(run_cases("build_vocabulary", tmp_path, calls=1, faults=faults))
    assert [line for line in lines if line["verdict"] not in FINE] == []
    assert [line["verdict"] for line in lines[-1:]] == ["finished"]
    assert any(line["verdict"] == "refused" for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_failing_disks(name, tmp_path):
    lines = list(run_cases(name, tmp_path, calls=4))
    assert [line for line in lines if line["verdict"] not in FINE] == []
    refused = [line["where"] for line in lines if line["verdict"] == "refused"]
    assert len(set(refused)) > len(HARMLESS)
    assert all(line["verdict"] == "finished" for line in lines if line["fault"] in HARMLESS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_what_another_machine_wrote_is_seen_late(name, tmp_path):
    lines = list(run_cases(name, tmp_path, calls=6))
    assert [line for line in lines if line["verdict"] not in FINE] == []
    assert {line["verdict"] for line in lines} == set(FINE)
    assert all(line["where"] for line in lines)
