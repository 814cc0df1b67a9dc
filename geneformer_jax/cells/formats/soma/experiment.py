"""Which experiment of a SOMA path is read, and which of its measurements."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from geneformer_jax.cells.formats.soma.library import open_object
from geneformer_jax.common.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import tiledbsoma

_EXPERIMENT, _COLLECTION = "SOMAExperiment", "SOMACollection"
_CENSUS, _CENSUS_INFO = "census_data", "census_info"
# What Census says of itself, and is kept in a provenance: its weekly builds live for a month.
_BUILD = ("census_build_date", "census_schema_version", "dataset_schema_version")
_USUAL_MEASUREMENT = "RNA"


class ExperimentPlace(NamedTuple):
    """Where an experiment lies.

    Attributes:
      path: of the experiment, or of the Census that it is part of.
      organism: which experiment of a Census; None if `path` is one itself.
    """

    path: Path
    organism: str | None

    @contextlib.contextmanager
    def open(self) -> Iterator[tiledbsoma.Experiment]:
        """Opens it for reading.

        Raises:
          InputError: it is not complete.
        """
        with open_object(self.path) as root:
            experiment = root if self.organism is None else root[_CENSUS][self.organism]
            _require_parts(self.path, experiment, ("obs", "ms"))
            yield experiment


def find_experiment(path: Path, organism: str | None) -> tuple[ExperimentPlace, dict[str, str]]:
    """Finds the experiment that is meant, and what a Census says of its build.

    Raises:
      InputError: there is none, or it must be said which.
    """
    with open_object(path) as root:
        if root.soma_type == _COLLECTION and _CENSUS in root:
            names = sorted(root[_CENSUS])
            chosen = _choose(path, "organism", organism, names, _only(names))
            return ExperimentPlace(path, chosen), {"organism": chosen, **_describe_build(root)}
        if root.soma_type != _EXPERIMENT:
            raise InputError(_no_experiment(path, root))
    if organism is not None:
        raise InputError(f"{path} is one experiment, not a Census; leave `organism` out")
    return ExperimentPlace(path, None), {}


def choose_measurement(path: Path, experiment: tiledbsoma.Experiment, asked: str | None) -> str:
    """Returns the measurement that is asked for, or else RNA or the only one.

    Raises:
      InputError: it is not there, or it must be said which, or it is not complete.
    """
    names = sorted(experiment.ms)
    usual = [_USUAL_MEASUREMENT] if _USUAL_MEASUREMENT in names else _only(names)
    chosen = _choose(path, "measurement", asked, names, usual)
    _require_parts(path, experiment.ms[chosen], ("var", "X"))
    return chosen


def _require_parts(path: Path, whole: tiledbsoma.Collection, names: Sequence[str]) -> None:
    for name in names:
        if name not in whole:
            holds = ", ".join(sorted(whole)) or "nothing"
            raise InputError(
                f"{path}: a {whole.soma_type} in it has no {name} (it holds {holds}); it is not "
                "complete: copy or write it again"
            )


def _choose(
    path: Path, what: str, asked: str | None, names: Sequence[str], usual: Sequence[str]
) -> str:
    listed = ", ".join(names) or "none"
    if asked in names:
        return asked
    if asked is not None:
        raise InputError(
            f'{path} has no {what} "{asked}"{did_you_mean(asked, names)}; it has: {listed}'
        )
    if usual:
        return usual[0]
    raise InputError(f"{path} has not one {what} but: {listed}; name one by `{what}`")


def _only(names: list[str]) -> list[str]:
    return names if len(names) == 1 else []


def _describe_build(census: tiledbsoma.Collection) -> dict[str, str]:
    if _CENSUS_INFO not in census or "summary" not in census[_CENSUS_INFO]:
        return {}
    summary = census[_CENSUS_INFO]["summary"].read(column_names=["label", "value"]).concat()
    facts = dict(zip(summary["label"].to_pylist(), summary["value"].to_pylist(), strict=True))
    return {name: facts[name] for name in _BUILD if name in facts}


def _no_experiment(path: Path, root: tiledbsoma.SOMAObject) -> str:
    what = f"{path} is a {root.soma_type}, but counts are read from a SOMAExperiment or a Census"
    if root.soma_type != _COLLECTION:
        return f"{what}: name the folder above it that holds obs and ms"
    inside = [name for name in root if root[name].soma_type == _EXPERIMENT]
    return f"{what}: name one of those in it ({', '.join(sorted(inside)) or 'there is none'})"
