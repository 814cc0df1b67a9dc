"""What tests of the perturb command share: a small model, the command, and folders compared."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pandas as pd
import pytest

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.model import pretrained
from geneformer_jax.perturbation import run as perturbation_run
from geneformer_jax.perturbation.config import PerturbationOptions
from geneformer_jax.perturbation.engine import plan
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.prepare import (
    make_perturber,
    make_plan,
    make_spec,
    resolve_edits,
)
from tests.helpers.commands import run_command
from tests.helpers.toy import toy_model

GENES = [f"ENSG{i:011d}" for i in (0, 3, 5, 8, 13)]


def make_model() -> pretrained.PretrainedModel:
    return toy_model(positions=128, initializer_range=0.2)


def perturber_of(
    model: pretrained.PretrainedModel,
    cells: EncodedCells,
    options: PerturbationOptions,
    devices: int = 1,
    tokens_per_part: int = plan.TOKENS_PER_PART,
    **sizes: int,
) -> Perturber:
    """A perturber of cells as they are, also those longer than the model sees."""
    spec = make_spec(model, options, jax.devices()[:devices])
    edits = make_plan(cells, options, spec, *resolve_edits(model, options), tokens_per_part)
    return make_perturber(model, cells, options, spec, edits, **sizes)


def command_on_five_cells(
    model: pretrained.PretrainedModel, store: Path, folder: Path, monkeypatch, capsys
) -> Callable[..., tuple[int, str, str]]:
    """The command on five cells in small parts; each call returns (exit status, output, error)."""
    monkeypatch.setattr(pretrained, "load_model", lambda path, quantize=None: model)
    in_small_parts = functools.partial(perturbation_run.PerturbationRun, tokens_per_part=1_000)
    monkeypatch.setattr(perturbation_run, "PerturbationRun", in_small_parts)

    def run(*arguments: str) -> tuple[int, str, str]:
        defaults = {
            "--checkpoint": "toy",
            "--cells": str(store),
            "--output": str(folder / "out"),
            "--max_cells": "5",
            "--genes": ",".join(GENES),
            # Figures take longer than such a run.
            "--statistics": "none",
        }
        given = [argument.partition("=")[0] for argument in arguments]
        defaults = [f"{name}={value}" for name, value in defaults.items() if name not in given]
        return run_command("perturb", [*defaults, *arguments], monkeypatch, capsys)

    return run


def assert_same_folders(found: Path, expected: Path, exactly: bool = True) -> None:
    names = sorted(str(path.relative_to(expected)) for path in expected.rglob("*.parquet"))
    assert sorted(str(path.relative_to(found)) for path in found.rglob("*.parquet")) == names
    for name in names:
        if exactly:
            assert (found / name).read_bytes() == (expected / name).read_bytes(), name
        else:
            tables = [pd.read_parquet(folder / name) for folder in (found, expected)]
            pd.testing.assert_frame_equal(*tables, rtol=0, atol=1e-5)


@contextlib.contextmanager
def killed_at_the_second_part() -> Iterator[list[int]]:
    """Edits end as by Ctrl-C when their second part is begun; yields where parts began."""
    shifts, calls = Perturber.shifts, []

    def dying(self, start, stop, progress):
        calls.append(start)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return shifts(self, start, stop, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Perturber, "shifts", dying)
        yield calls
