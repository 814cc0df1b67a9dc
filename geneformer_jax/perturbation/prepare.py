"""A perturbation made ready: options checked, cells chosen, states found."""

from collections.abc import Sequence

import jax
import numpy as np

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.embedder import check_options
from geneformer_jax.embedding.states import StateEmbeddings
from geneformer_jax.inference.cells import ChosenCells, check_vocabulary, select_cells
from geneformer_jax.model.heads import HeadConfig
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime, inference_runtime
from geneformer_jax.perturbation.cell_states import compute_states, read_states, unit_vectors
from geneformer_jax.perturbation.config import Options
from geneformer_jax.perturbation.engine.edits import SpecialTokens
from geneformer_jax.perturbation.engine.forward import CELL, CLS
from geneformer_jax.perturbation.engine.gene_sets import TOGETHER, gene_tokens
from geneformer_jax.perturbation.engine.perturber import MetricSpec, Perturber
from geneformer_jax.perturbation.engine.plan import Work, plan_work

NOT_EXPRESSING = "not expressing the genes"
_READ_AT_ONCE = 4_096


def check(model: PretrainedModel, options: Options) -> None:
    """Raises InputError if the options contradict each other or the model, before cells are read.

    Args:
      model: that perturbs.
      options: of the run.
    """
    check_vocabulary(model)
    choose_mode(model, options)
    options.rule()
    options.gene_sets(model)


def choose_mode(model: PretrainedModel, options: Options) -> str:
    """Returns what stands for a cell: as asked, or "cls" for models with `<cls>`, as the original.

    Raises:
      InputError: the model has no such mode or layer, or no classifier where one is asked for.
    """
    mode = options.mode or (CELL if model.vocabulary.cls_id is None else CLS)
    check_options(model, mode, options.layer)
    _classifier(model, options)
    return mode


def _classifier(model: PretrainedModel, options: Options) -> HeadConfig | None:
    if not options.classes:
        return None
    if model.head is None or model.head.kind != "cell_classifier":
        has = "none" if model.head is None else f"a {model.head.kind}"
        raise InputError(
            f"class probabilities need a checkpoint with a cell classifier, but {model.source} has "
            f"{has}; name one that finetune wrote, or leave classes out"
        )
    return model.head


def choose_cells(cells: EncodedCells, options: Options, model: PretrainedModel) -> EncodedCells:
    """Chooses the cells to perturb, in input order.

    As in the original: the filters, the start state, the genes that must be expressed, and then the
    draw.

    Raises:
      InputError: a column, value, state or gene is unknown, or no cell is left.
    """
    rule, sets = options.rule(), options.gene_sets(model)
    chosen = select_cells(cells, options.filters)
    if options.states is not None:
        options.states.check(chosen)
        chosen = options.states.start_cells(chosen)
    needed = list(gene_tokens(model.vocabulary, options.expressing)) if options.expressing else []
    if not rule.adds_genes:
        needed += [] if sets.anchor is None else [sets.anchor]
        needed += sets.listed if sets.combine == TOGETHER else []
    if needed:
        chosen = _expressing(chosen, tuple(dict.fromkeys(needed)), options, model)
    return select_cells(chosen, None, options.at_most, options.seed)


def _expressing(
    cells: EncodedCells, tokens: tuple[int, ...], options: Options, model: PretrainedModel
) -> ChosenCells:
    frame, rule = SpecialTokens.of(model.vocabulary, model.config.positions), options.rule()
    keep = np.zeros(len(cells.lengths), bool)
    for begin in range(0, len(keep), _READ_AT_ONCE):
        numbers = np.arange(begin, min(begin + _READ_AT_ONCE, len(keep)))
        for cell, own in zip(numbers, cells.read(numbers), strict=True):
            keep[cell] = np.isin(tokens, frame.ranks(own).within_reach(rule)).all()
    if not keep.any():
        names = ", ".join(model.vocabulary.gene_id_of(token) for token in tokens)
        raise InputError(
            f"none of the {len(keep):,} chosen cells expresses {names}"
            f"{' together' if len(tokens) > 1 else ''}; name other genes or choose other cells"
        )
    dropped = dict(getattr(cells, "dropped", {}))
    left = int((~keep).sum())
    return ChosenCells(
        cells, np.flatnonzero(keep), dropped | ({NOT_EXPRESSING: left} if left else {})
    )


def find_work(cells: EncodedCells, options: Options, model: PretrainedModel) -> Work:
    """Plans the edits of the chosen cells."""
    frame = SpecialTokens.of(model.vocabulary, model.config.positions)
    return plan_work(cells, options.rule(), frame, options.gene_sets(model))


def measures_of(
    model: PretrainedModel, options: Options, states: StateEmbeddings | None
) -> MetricSpec:
    """Says what is measured, with the embeddings of the states where there are any."""
    vectors = None if states is None else unit_vectors(states, options.states, options.layer)
    return MetricSpec(
        mode=choose_mode(model, options),
        layer=options.layer,
        states=() if states is None else tuple(options.states.names),
        vectors=vectors,
        head=_classifier(model, options),
        gene_rows=options.gene_rows(),
    )


def find_states(
    model: PretrainedModel,
    cells: EncodedCells,
    options: Options,
    runtime: Runtime | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> StateEmbeddings | None:
    """Reads the given state embeddings, or embeds the cells of the states; None without states.

    Args:
      model: that perturbs.
      cells: all cells, those of other states than the start too.
      options: of the run.
      runtime: how to compute.
      devices: which share the work.
    """
    if options.states is None:
        return None
    mode, layer = choose_mode(model, options), options.layer
    if options.state_embeddings:
        return read_states(options.state_embeddings, options.states, model, mode, layer)
    own = select_cells(cells, options.filters)
    return compute_states(model, own, options.states, mode, layer, runtime, devices)


def make_perturber(
    model: PretrainedModel,
    cells: EncodedCells,
    options: Options,
    runtime: Runtime | None = None,
    devices: Sequence[jax.Device] | None = None,
    tokens_per_device: int | None = None,
) -> Perturber:
    """Plans a run and readies the devices for it."""
    work = find_work(choose_cells(cells, options, model), options, model)
    runtime = runtime or inference_runtime(model.config, int(work.longest.max()))[0]
    states = find_states(model, cells, options, runtime, devices)
    measures = measures_of(model, options, states)
    return Perturber(
        model, work, measures, runtime, devices=devices, tokens_per_device=tokens_per_device
    )
