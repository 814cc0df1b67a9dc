"""Folders of runs whose record of which run they are of was damaged."""

import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.workdir import claim_workdir


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"mode": "\xff"}', b"[" * 100_000]
)
def test_a_damaged_record_is_told(content, tmp_path):
    claim_workdir(tmp_path / "run", {"mode": "cell"})
    claim_workdir(tmp_path / "run", {"mode": "cell"})
    (tmp_path / "run" / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config.json is damaged; name a new `workdir`"):
        claim_workdir(tmp_path / "run", {"mode": "cell"})
