"""Perturbation in plain Python, one cell at a time: what the engine is compared with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from geneformer_jax.model.encoder import encode
from geneformer_jax.model.heads import HeadConfig, head_module
from geneformer_jax.model.precision import precision_preset
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.perturbation.engine.edits import EditRule, SpecialTokens
from tests.helpers.perturbation_reference import GivenCells
from tests.helpers.toy import toy_model

LIMIT, PADDED = 24, 32
CLS, EOS = 2, 3


def edited_by_hand(rule: EditRule, special: SpecialTokens, genes: list[int], perturbed: list[int]):
    """Edits a list of genes as the documentation says; returns (original, edited) tokens."""
    limit = special.limit - 2 * special.framed
    seen = genes if rule.refill else genes[:limit]
    others = [gene for gene in seen if gene not in perturbed]
    match rule.kind:
        case "delete":
            edited = others
        case "overexpress":
            edited = perturbed + others
        case _:
            edited = moved_by_hand(rule, seen, perturbed)
    longer = 0 if rule.refill else max(len(edited) - limit, 0)
    original = genes[:limit][: len(seen) - longer]
    return framed(special, original), framed(special, edited[:limit])


def make_model(special_tokens=("<pad>", "<mask>"), classifier: bool = False) -> PretrainedModel:
    """A model of few positions in which edits move much."""
    head = HeadConfig("cell_classifier", ("healthy", "sick"), 0.0) if classifier else None
    sizes = {"layers": 3, "positions": LIMIT, "initializer_range": 0.3}
    return toy_model(0, special_tokens, head, **sizes)


def make_cells(model: PretrainedModel, lengths, seed: int = 0) -> GivenCells:
    """Cells of so many genes, of those with even tokens; the first gene of all is the same."""
    rng, vocabulary = np.random.default_rng(seed), model.vocabulary
    first = vocabulary.first_gene_token
    pool = np.arange(first + 2, first + 100, 2)
    tokens = []
    for length in lengths:
        genes = np.append(rng.permutation(pool)[: length - 1], first)
        genes = rng.permutation(genes)
        tokens.append(np.array([2, *genes, 3] if vocabulary.cls_id else genes, np.uint16))
    obs = pd.DataFrame(
        {"kind": ["a", "b", "c"] * len(lengths)}, index=range(len(lengths) * 3)
    ).iloc[: len(lengths)]
    obs.index = [f"cell{i}" for i in range(len(lengths))]
    return GivenCells(tokens, obs, vocabulary)


@functools.cache
def _encoder(config, layers):
    return jax.jit(lambda params, ids, n: encode(config, params, ids, n, layers=layers))


def encoded(model: PretrainedModel, tokens: list[int], layer: int) -> np.ndarray:
    """Hidden states [T, D] of one cell."""
    ids = np.zeros((1, LIMIT), np.int32)
    ids[0, : len(tokens)] = tokens
    run = _encoder(model.config, model.config.layers + layer)
    hidden = run(model.params, ids, jnp.array([len(tokens)]))
    return np.asarray(hidden, np.float64)[0, : len(tokens)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def by_hand(model: PretrainedModel, rule: EditRule, genes, perturbed, layer=-1) -> dict:
    """All measures of one edit, and the cosine of each gene."""
    special = SpecialTokens.of(model.vocabulary, LIMIT)
    original, edited = edited_by_hand(rule, special, list(genes), list(perturbed))
    before, after = (encoded(model, tokens, layer) for tokens in (original, edited))
    genes = {
        token: cosine(after[edited.index(token)], before[original.index(token)])
        for token in edited
        if token in original and token not in perturbed and token >= special.first_gene_token
    }
    mean = [
        hidden[np.array(tokens) >= special.first_gene_token].mean(axis=0)
        for hidden, tokens in ((before, original), (after, edited))
    ]
    values = {"mean_gene_cosine": np.mean(list(genes.values())), "cell_cosine": cosine(*mean)}
    values |= {"cls_cosine": cosine(before[0], after[0]), "genes": genes, "mean": mean}
    if model.head is not None:
        weights = model.params[model.head.kind]
        head = head_module(model.config, model.head, weights, precision_preset("float32"))
        last = [encoded(model, tokens, 0)[None].astype(np.float32) for tokens in (original, edited)]
        values["classes"] = [np.asarray(jax.nn.softmax(head(each)))[0] for each in last]
    return values


def ids_of(model, tokens) -> str:
    return "+".join(model.vocabulary.gene_id_of(int(token)) for token in tokens)


def value_of(
    table: pd.DataFrame, cell: str, perturbed: str, measure: str, state: str = ""
) -> float:
    rows = table[
        (table["cell"] == cell)
        & (table["perturbed"] == perturbed)
        & (table["measure"] == measure)
        & (table["state"] == state)
    ]
    assert len(rows) == 1, (cell, perturbed, measure, state)
    return float(rows["value"].iloc[0])


def moved_by_hand(rule: EditRule, seen: list[int], perturbed: list[int]) -> list[int]:
    """Puts each gene beside the one that stands r ranks below (inhibit) or above (activate)."""
    r = rule.ranks or max(1, round(rule.quantile * len(seen)))
    above, below = ([[] for _ in seen] for _ in range(2))
    for rank, gene in enumerate(seen):
        if gene in perturbed and rule.kind == "inhibit":
            below[min(rank + r, len(seen) - 1)].append(gene)
        elif gene in perturbed:
            above[max(rank - r, 0)].append(gene)
    edited = []
    for rank, gene in enumerate(seen):
        edited += [*above[rank], *([] if gene in perturbed else [gene]), *below[rank]]
    return edited


def framed(special: SpecialTokens, genes: list[int]) -> list[int]:
    return [CLS, *genes, EOS] if special.framed else genes
