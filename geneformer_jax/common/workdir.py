"""The folder of a run: it says which run it is of, and no other run goes on in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write, require_new_folder
from geneformer_jax.common.provenance import write_provenance

CONFIG = "config.json"


def claim_workdir(
    workdir: Path, identity: Mapping[str, Any], story: Mapping[str, Any] | None = None
) -> None:
    """Begins a run's folder, or checks that it is of the same run.

    Args:
      workdir: a new folder, or that of the run.
      identity: what decides the result, by dotted name, as plain numbers and texts.
      story: for provenance.json of a new folder; None leaves that for later.

    Raises:
      InputError: the folder is of another run, or holds something else.
    """
    path = workdir / CONFIG
    if path.is_file():
        before = json.loads(path.read_text())
        changed = [key for key in identity if before.get(key) != identity[key]]
        if changed:
            key = changed[0]
            raise InputError(
                f"{workdir} is of a run with {key} = {before.get(key)!r}, not {identity[key]!r}; "
                "name a new --workdir, or the same configuration to resume"
            )
        return
    require_new_folder(workdir, remedy="name a new --workdir")
    # As one folder, so that a run killed here leaves nothing that would be refused next time.
    with atomic_write(workdir) as aside:
        aside.mkdir()
        if story is not None:
            write_provenance(aside, story)
        (aside / CONFIG).write_text(json.dumps(identity, indent=2) + "\n")
