"""Which cells of a screen are controls, and in which of them which gene was perturbed.

Imports no JAX: the command asks before it loads it, and before counts are read.
"""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.columns import check_columns
from geneformer_jax.inference.filters import label_texts, parse_filters, passing

# Number of the control cells among the groups of cells, and of cells that are left out.
CONTROLS, LEFT_OUT = -1, -2
COMBINED, UNKNOWN, NO_LABEL = "several genes at once", "names no known gene", "no label"
_USUAL_CONTROLS = {
    "control", "ctrl", "nt", "ntc", "neg", "negctrl", "negative", "negativecontrol",
    "nontargeting", "unperturbed", "untreated", "scramble", "scrambled", "safetargeting",
}  # fmt: skip
_SEPARATORS = ("+", "|", ";", ",", "_")
# What labels add to the gene: number of the guide, or how it was perturbed.
_SINGLE_GUIDE = re.compile(r"sg(.+?)([-_.]\d+)?", re.IGNORECASE)
_GUIDE = re.compile(r"(sg|g|grna|guide|rep)?-?\d+|ko|kd|oe|crispri|crispra", re.IGNORECASE)
_SHOWN = 3

# Texts -> for each what stands for the gene it names, None where it names none.
FindGenes = Callable[[Sequence[str]], Sequence[Hashable | None]]


class Target(NamedTuple):
    """What a label says: the gene, or else why it is left out."""

    gene: Hashable | None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Screen:
    """The cells of a screen by what was perturbed in them.

    Attributes:
      names: label of each perturbation, in alphabetical order; of several labels of one gene the
        commonest.
      genes: what stands for the gene of each.
      groups: int64 [cells] number of the perturbation, CONTROLS, or LEFT_OUT.
      left_out: `perturbation`, `cells` and `reason` of each label that is left out.
    """

    names: tuple[str, ...]
    genes: tuple[Hashable, ...]
    groups: np.ndarray
    left_out: tuple[Mapping[str, object], ...]

    @property
    def cells(self) -> np.ndarray:
        """int64 [perturbations] cells of each."""
        return np.bincount(self.groups[self.groups >= 0], minlength=len(self.names))

    @property
    def controls(self) -> int:
        """Number of control cells."""
        return int((self.groups == CONTROLS).sum())

    def without(self, dropped: Mapping[int, str]) -> "Screen":
        """Returns the screen without some perturbations.

        Args:
          dropped: number of the perturbation -> why it is left out.
        """
        kept = [number for number in range(len(self.names)) if number not in dropped]
        place = np.full(len(self.names) + 2, LEFT_OUT)
        place[kept], place[CONTROLS] = np.arange(len(kept)), CONTROLS
        cells = self.cells
        more = (_left_out(self.names[n], cells[n], why) for n, why in dropped.items())
        return Screen(
            tuple(self.names[number] for number in kept),
            tuple(self.genes[number] for number in kept),
            place[self.groups],
            (*self.left_out, *more),
        )


def read_screen(
    obs: pd.DataFrame,
    column: str,
    control: str,
    find_genes: FindGenes,
    min_cells: int,
    *,
    lenient: bool = False,
) -> Screen:
    """Reads the labels of a screen's cells.

    A label is a gene ("CD74", an Ensembl id), with a guide's number ("CD74_g2", "sgCD74-2") or
    beside the control ("CD74+ctrl"). Labels of one gene are taken together; those of several genes
    ("A+B", "A_B"), of none, and of too few cells are left out.

    Args:
      obs: [cells] per-cell columns.
      column: of the labels.
      control: label of the control cells, or several as "A|B".
      find_genes: finds genes by names.
      min_cells: of a perturbation, and of the controls.
      lenient: take what names no known gene for a gene of its own.

    Raises:
      InputError: no such column or control label, too few control cells, or fewer than two
        perturbations are left.
    """
    check_columns(obs, [column])
    texts = label_texts(obs[column])
    is_control = _controls(obs, texts, column, control)
    if is_control.sum() < min_cells:
        raise InputError(
            f'column "{column}" has {is_control.sum():,} control cells ("{control}"), but at least '
            f"`min_cells` = {min_cells:,} are needed; give a file with more, or lower `min_cells`"
        )
    others = texts[~is_control].dropna()
    labels = list(others.value_counts().index)
    targets = _targets(labels, find_genes, set(texts[is_control]))
    if lenient:
        pairs = zip(labels, targets, strict=True)
        targets = [Target(x) if each.reason == UNKNOWN else each for x, each in pairs]
    screen = _grouped(texts, is_control, dict(zip(labels, targets, strict=True)))
    rare = np.flatnonzero(screen.cells < min_cells).tolist()
    few = dict.fromkeys(rare, f"fewer than {min_cells:,} cells")
    left = screen.without(few)
    if len(left.names) < 2:
        raise _nothing_left(left, column, max(screen.cells, default=0))
    return left


def describe_screen(screen: Screen) -> list[str]:
    """Returns lines on what a screen holds and what is left out of it."""
    lines = [
        f"{len(screen.names):,} perturbations of {screen.cells.sum():,} cells, "
        f"{screen.controls:,} control cells"
    ]
    for reason in dict.fromkeys(each["reason"] for each in screen.left_out):
        names = [str(each["perturbation"]) for each in screen.left_out if each["reason"] == reason]
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        lines.append(f"perturbations left out, {reason}: {len(names):,} ({shown})")
    return lines


def _controls(obs: pd.DataFrame, texts: pd.Series, column: str, control: str) -> np.ndarray:
    try:
        return passing(obs, parse_filters([f"{column}:{control}"]))
    except InputError as error:
        usual = [each for each in texts.dropna().unique() if _is_usual_control(each)]
        hint = f'; it has "{usual[0]}", a usual name of controls' if usual else ""
        raise InputError(f"{error}{hint}; name the label of controls by `control`") from None


def _is_usual_control(label: str) -> bool:
    return re.sub(r"[\W_\d]", "", label).lower() in _USUAL_CONTROLS


def _targets(labels: list[str], find_genes: FindGenes, controls: set[str]) -> list[Target]:
    """Finds the gene of each label; all names are looked up at one go."""
    readings = [[[label], *_splits(label, controls)] for label in labels]
    names = list(dict.fromkeys(name for each in readings for parts in each for name in parts))
    gene_of = dict(zip(names, find_genes(names), strict=True)) if names else {}
    return [_target([[gene_of[name] for name in parts] for parts in each]) for each in readings]


def _splits(label: str, controls: set[str]) -> list[list[str]]:
    """Returns what a label may name beside itself, for each way of taking it apart."""
    found = []
    for separator in _SEPARATORS:
        parts = [part.strip() for part in label.split(separator)]
        names = [part for part in parts if part and not _names_no_gene(part, controls)]
        if len(parts) > 1 and names:
            found.append(names)
    guide = _SINGLE_GUIDE.fullmatch(label)
    return [*found, *([[guide[1]]] if guide else [])]


def _names_no_gene(part: str, controls: set[str]) -> bool:
    return part in controls or _is_usual_control(part) or bool(_GUIDE.fullmatch(part))


def _target(readings: list[list[Hashable | None]]) -> Target:
    known = next((genes for genes in readings if None not in genes), None)
    if known is None:
        return Target(None, UNKNOWN)
    return Target(known[0]) if len(set(known)) == 1 else Target(None, COMBINED)


def _grouped(texts: pd.Series, is_control: np.ndarray, targets: Mapping[str, Target]) -> Screen:
    # The commonest label comes first.
    name_of: dict[Hashable, str] = {}
    for label, target in targets.items():
        if target.gene is not None:
            name_of.setdefault(target.gene, label)
    genes = sorted(name_of, key=lambda gene: name_of[gene])
    number = {gene: place for place, gene in enumerate(genes)}
    of_label = {label: number.get(each.gene, LEFT_OUT) for label, each in targets.items()}
    groups = texts.map(of_label).fillna(LEFT_OUT).to_numpy(np.int64)
    groups[is_control] = CONTROLS
    sizes = texts[~is_control].value_counts()
    left_out = [_left_out(x, sizes[x], each.reason) for x, each in targets.items() if each.reason]
    if missing := int(texts.isna().sum()):
        left_out.append(_left_out("", missing, NO_LABEL))
    return Screen(tuple(name_of[gene] for gene in genes), tuple(genes), groups, tuple(left_out))


def _left_out(name: str, cells: int, reason: str) -> dict[str, object]:
    return {"perturbation": name, "cells": int(cells), "reason": reason}


def _nothing_left(screen: Screen, column: str, most: int) -> InputError:
    """Explains, by the commonest reason, why fewer than two perturbations are left."""
    reasons = Counter(str(each["reason"]) for each in screen.left_out)
    head = f'validation needs 2 perturbations, but column "{column}" has {len(screen.names)}'
    if not reasons:
        return InputError(
            f"{head}; give cells of more perturbations, or name the column of perturbed genes by "
            "`perturbation`"
        )
    reason, number = reasons.most_common(1)[0]
    example = next(each for each in screen.left_out if each["reason"] == reason)["perturbation"]
    remedy = {
        UNKNOWN: "label cells by gene symbols or Ensembl ids, or name another column by "
        "`perturbation`",
        COMBINED: "give cells in which one gene is perturbed",
        NO_LABEL: "label the perturbed cells",
    }.get(reason, f"the largest has {most:,}: give more cells, or lower `min_cells`")
    return InputError(f'{head}; {number:,} are left out, such as "{example}" ({reason}): {remedy}')
