"""A perturbation made ready: options resolved into a plan, cells chosen, states embedded."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from geneformer_jax.cells.store.cell_store import EncodedCells
from geneformer_jax.common.errors import InputError
from geneformer_jax.embedding.embedder import check_options
from geneformer_jax.embedding.states import StateEmbeddings
from geneformer_jax.inference.arguments import check_model
from geneformer_jax.inference.cells import (
    ChosenCells,
    check_vocabulary,
    left_out_of,
    select_cells,
)
from geneformer_jax.inference.listed_genes import read_genes
from geneformer_jax.model.heads import HeadConfig
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime, inference_runtime
from geneformer_jax.model.sharding import inference_mesh
from geneformer_jax.perturbation.config import PerturbationOptions
from geneformer_jax.perturbation.engine.edits import EditRule, SpecialTokens
from geneformer_jax.perturbation.engine.encoding import ForwardSpec
from geneformer_jax.perturbation.engine.gene_sets import (
    TOGETHER,
    GeneSets,
    gene_tokens,
    read_gene_sets,
)
from geneformer_jax.perturbation.engine.perturber import Perturber
from geneformer_jax.perturbation.engine.plan import TOKENS_PER_PART, EditPlan, plan_edits
from geneformer_jax.perturbation.engine.screening.reranking import encodings_of_reranking
from geneformer_jax.perturbation.layout import CELL, CLS
from geneformer_jax.perturbation.state_vectors import (
    check_states,
    compute_states,
    read_states,
    start_cells,
    unit_vectors,
)

NOT_EXPRESSING = "not expressing the genes"
# As a fraction of a run's encodings: what is made beside the edits without being asked for.
LITTLE = 0.1
_READ_AT_ONCE = 4_096


def make_spec(
    model: PretrainedModel,
    options: PerturbationOptions,
    devices: Sequence[jax.Device] | None = None,
) -> ForwardSpec:
    """Resolves what is computed of each edit; the runtime can be replaced once cells are known.

    Args:
      model: that perturbs.
      options: of the run.
      devices: which share the work; all of this process by default.

    Raises:
      InputError: the model has no vocabulary, no such mode or hidden layer, or no classifier where
        one is asked for.
    """
    check_model(model)
    check_vocabulary(model)
    # "cls" for models with `<cls>`, as the original.
    mode = options.mode or (CELL if model.vocabulary.cls_id is None else CLS)
    check_options(model, mode, options.hidden_layer)
    return ForwardSpec(
        config=model.config,
        runtime=Runtime(),
        mesh=inference_mesh(None if devices is None else list(devices)),
        special=SpecialTokens.of(model.vocabulary, model.config.positions),
        mode=mode,
        hidden_layer=options.hidden_layer,
        head=_classifier(model, options.screen) if options.classes else None,
        gene_rows=options.gene_rows,
        states=tuple(options.states.names) if options.states else (),
        keep_positions=options.keep_positions,
    )


def name_states(
    options: PerturbationOptions, spec: ForwardSpec, cells: EncodedCells
) -> tuple[PerturbationOptions, ForwardSpec]:
    """Returns options and spec with the states as the cells' column names them."""
    if options.states is None:
        return options, spec
    states = options.states.named_in(cells.obs)
    return replace(options, states=states), replace(spec, states=tuple(states.names))


def _classifier(model: PretrainedModel, screen: bool) -> HeadConfig:
    if model.head is None or model.head.kind != "cell_classifier":
        has = "none" if model.head is None else f"a {model.head.kind}"
        raise InputError(
            f"class probabilities need a checkpoint with a cell classifier, but {model.source} has "
            f"{has}; name one that finetune wrote, or leave classes out"
        )
    if model.head.tasks:
        names = ", ".join(task.name for task in model.head.tasks)
        raise InputError(
            f"class probabilities need one classification, but {model.source} has several tasks or "
            f"a regression ({names}); name a checkpoint of one classification, or leave classes out"
        )
    if screen and model.head.extra_layer:
        raise InputError(
            f"the classifier of {model.source} has one more transformer layer, which a screen does "
            "not know; leave `classes` or `screen` out"
        )
    return model.head


def resolve_edits(
    model: PretrainedModel, options: PerturbationOptions
) -> tuple[EditRule, GeneSets]:
    """Resolves how genes are perturbed, and which of them together.

    Raises:
      InputError: options contradict each other, or a gene is unknown.
    """
    given = options.edit, options.ranks, options.quantile
    rule = EditRule(*given, options.refill, options.keep_positions)
    sets = read_gene_sets(
        model.vocabulary, options.genes, options.combine, options.anchor, options.combinations
    )
    return rule, sets


def make_plan(
    cells: EncodedCells,
    options: PerturbationOptions,
    spec: ForwardSpec,
    rule: EditRule,
    sets: GeneSets,
    tokens_per_part: int = TOKENS_PER_PART,
) -> EditPlan:
    """Chooses the cells to perturb, and finds their edits.

    Args:
      cells: to choose from.
      options: of the run.
      spec: what is computed of each edit.
      rule, sets: see `resolve_edits`.
      tokens_per_part: tokens to encode in each part, about.

    Raises:
      InputError: a column, value, state or gene is unknown, no cell is left, or none expresses the
        genes.
    """
    _require_distinct_ids(cells)
    chosen = _choose_cells(cells, options, rule, spec.special, sets)
    return plan_edits(chosen, rule, spec.special, sets, tokens_per_part)


def _require_distinct_ids(cells: EncodedCells) -> None:
    """Shifts are tables by the ids of cells, which must tell them apart."""
    ids = cells.obs.index
    if not ids.is_unique:
        raise InputError(
            f'cell id "{ids[ids.duplicated()][0]}" occurs twice, and shifts are told by ids; make '
            "them distinct, as by adata.obs_names_make_unique()"
        )


def with_reranking(options: PerturbationOptions, plan: EditPlan) -> PerturbationOptions:
    """Returns the options with whether the part `reranking` is made, where the plan decides it."""
    if options.reranking is not None:
        return options
    further = encodings_of_reranking(plan, len(options.states.names))
    return replace(options, reranking=bool(further <= LITTLE * plan.passes.sum()))


def all_left_out(plan: EditPlan) -> dict[str, int]:
    """Returns reason -> number of cells, or edits, that were left out by choice or by the plan."""
    return {**left_out_of(plan.cells), **plan.left_out}


def _choose_cells(
    cells: EncodedCells,
    options: PerturbationOptions,
    rule: EditRule,
    special: SpecialTokens,
    sets: GeneSets,
) -> EncodedCells:
    """Chooses the cells to perturb, in input order.

    As in the original: the filters, the start state, the genes that must be expressed, and then the
    draw.
    """
    chosen = select_cells(cells, options.filters)
    if options.states is not None:
        check_states(options.states, chosen)
        chosen = start_cells(options.states, chosen)
    named = options.expressing
    named = read_genes(named) if isinstance(named, str) else named
    needed = list(gene_tokens(cells.vocabulary, named)) if len(named) else []
    if not rule.adds_genes:
        needed += [] if sets.anchor is None else [sets.anchor]
        needed += sets.listed if sets.combine == TOGETHER else []
    if needed:
        chosen = _expressing(chosen, list(dict.fromkeys(needed)), rule, special)
    return select_cells(chosen, None, options.max_cells, options.seed)


def _expressing(
    cells: EncodedCells, tokens: Sequence[int], rule: EditRule, special: SpecialTokens
) -> ChosenCells:
    keep = np.zeros(len(cells.lengths), bool)
    for begin in range(0, len(keep), _READ_AT_ONCE):
        numbers = np.arange(begin, min(begin + _READ_AT_ONCE, len(keep)))
        for cell, own in zip(numbers, cells.read(numbers), strict=True):
            keep[cell] = np.isin(tokens, special.within_reach(rule, special.genes_of(own))).all()
    if not keep.any():
        names = ", ".join(cells.vocabulary.gene_id_of(token) for token in tokens)
        raise InputError(
            f"none of the {len(keep):,} chosen cells expresses {names}"
            f"{' together' if len(tokens) > 1 else ''}; name other genes or choose other cells"
        )
    dropped = left_out_of(cells)
    left = int((~keep).sum())
    return ChosenCells(
        cells, np.flatnonzero(keep), dropped | ({NOT_EXPRESSING: left} if left else {})
    )


def find_states(
    model: PretrainedModel, cells: EncodedCells, options: PerturbationOptions, spec: ForwardSpec
) -> StateEmbeddings | None:
    """Reads the given state embeddings, or embeds the cells of the states; None without states.

    Args:
      model: that perturbs.
      cells: all cells, those of other states than the start too.
      options: of the run.
      spec: how the edited cells are embedded.
    """
    if options.states is None:
        return None
    mode, hidden_layer = spec.mode, spec.hidden_layer
    if options.state_embeddings:
        return read_states(options.state_embeddings, options.states, model, mode, hidden_layer)
    own, devices = select_cells(cells, options.filters), list(spec.mesh.devices.flat)
    return compute_states(model, own, options.states, mode, hidden_layer, spec.runtime, devices)


def state_vectors(
    states: StateEmbeddings | None, options: PerturbationOptions
) -> np.ndarray | None:
    """Returns the states' embeddings at unit length, float32 [states, D]; None without states."""
    if states is None:
        return None
    return unit_vectors(states, options.states, options.hidden_layer)


def make_perturber(
    model: PretrainedModel,
    cells: EncodedCells,
    options: PerturbationOptions,
    spec: ForwardSpec,
    plan: EditPlan,
    runtime: Runtime | None = None,
    **sizes: int | None,
) -> Perturber:
    """Readies the devices for exact edits.

    Args:
      model, cells, options, spec, plan, runtime: see `choose_runtime`.
      sizes: those of `Perturber`.
    """
    given = choose_runtime(model, cells, options, spec, plan, runtime)
    return Perturber(model, plan, *given, **sizes)


def choose_runtime(
    model: PretrainedModel,
    cells: EncodedCells,
    options: PerturbationOptions,
    spec: ForwardSpec,
    plan: EditPlan,
    runtime: Runtime | None = None,
) -> tuple[ForwardSpec, np.ndarray | None]:
    """Chooses how to compute a plan, and finds the states.

    Args:
      model: that perturbs.
      cells: all cells, those of other states than the start too.
      options: of the run.
      spec: what is computed of each edit.
      plan: the edits.
      runtime: how to compute; float32, and the attention that suits the device, by default.

    Returns:
      (what is computed and how, the states' embeddings as of `state_vectors`).
    """
    # Attention is chosen for what is encoded, which may be shorter than the cells.
    runtime = runtime or inference_runtime(model.config, int(plan.longest.max()))[0]
    spec = replace(spec, runtime=runtime)
    return spec, state_vectors(find_states(model, cells, options, spec), options)
