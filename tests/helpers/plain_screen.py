"""A screen of one cell in plain JAX, token by token: what the engine's is compared with."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from geneformer_jax.model.pretrained import PretrainedModel


def _norm(x, weights):
    centred = x - x.mean(-1, keepdims=True)
    root = jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return centred / root * weights["scale"] + weights["bias"]


def _block(weights, x, bias):
    q, k, v = (
        jnp.einsum("td,dnh->tnh", x, weights[name]["kernel"]) + weights[name]["bias"]
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("tnh,snh->nts", q, k) / np.sqrt(q.shape[-1]) + bias
    mixed = jnp.einsum("nts,snh->tnh", jax.nn.softmax(scores), v)
    out = weights["attention_output"]
    x = _norm(x + jnp.einsum("tnh,nhd->td", mixed, out["kernel"]) + out["bias"],
              weights["attention_norm"])  # fmt: skip
    up = jax.nn.relu(x @ weights["up"]["kernel"] + weights["up"]["bias"])
    down = up @ weights["down"]["kernel"] + weights["down"]["bias"]
    return _norm(x + down, weights["output_norm"])


def _hidden(model: PretrainedModel, layer, tokens, moved, bias):
    """Hidden states of a cell whose genes have moved up and attract attention."""
    table = model.params["embeddings"]
    here = np.arange(len(tokens))
    place = table["position"]["embedding"]
    x = table["word"]["embedding"][tokens] + table["token_type"]["embedding"][0]
    x = x + place[here] + moved[:, None] * (place[np.maximum(here - 1, 0)] - place[here])
    x = _norm(x, table["norm"])
    blocks = [
        jax.tree.map(operator.itemgetter(number), model.params["blocks"])
        for number in range(model.config.layers + layer)
    ]
    for block in blocks:
        x = _block(block, x, bias)
    return x


def plain_cosine(model: PretrainedModel, layer, mode, state, tokens, moved, bias, weights):
    """Cosine of a cell with a state; its genes have moved up, attract attention, and weigh."""
    x = _hidden(model, layer, tokens, moved, bias)
    weights = weights * (tokens >= model.vocabulary.first_gene_token)
    vector = x[0] if mode == "cls" else (weights[:, None] * x).sum(0) / weights.sum()
    return vector @ state / jnp.linalg.norm(vector) / np.linalg.norm(state)


def plain_probability(model: PretrainedModel, label: int, tokens, moved, bias, weights):
    """Probability of a class of such a cell; without its first token the second stands for it."""
    x = _hidden(model, 0, tokens, moved, bias)
    pooled = weights[0] * x[0] + (1 - weights[0]) * x[1]
    if model.head.pooling == "mean":
        pooled = (weights[:, None] * x).sum(0) / weights.sum()
    head = model.params["cell_classifier"]
    dense = jnp.tanh(pooled @ head["pooler"]["kernel"] + head["pooler"]["bias"])
    logits = dense @ head["classifier"]["kernel"] + head["classifier"]["bias"]
    return jax.nn.softmax(logits)[label]


def plain_screen(model: PretrainedModel, value, tokens, splits):
    """Estimated shift and re-ranking of the deletion at each position of a gene: {position: both}.

    Args:
      value: function of tokens, and of how each moves, attracts attention and weighs, such as
        `plain_cosine` of a model.
      splits: positions at which the value of the cell with its later tokens moved is exact.
    """
    with jax.default_matmul_precision("highest"):
        valued = functools.partial(value, tokens)
        none, one = np.zeros(len(tokens)), np.ones(len(tokens))
        first = int(tokens[0] < model.vocabulary.first_gene_token)
        gradient = jax.jit(jax.grad(valued, (0, 1, 2)))
        evaluate = jax.jit(valued)

        def behind(position):
            return (np.arange(len(tokens)) > position).astype(float)

        own, by_bias, by_weight = (np.asarray(x, float) for x in gradient(none, none, one))
        moving = (own + np.asarray(gradient(behind(first), none, one)[0], float)) / 2
        exact = {split: float(evaluate(behind(split), none, one)) for split in splits}
        whole = float(evaluate(none, none, one))
    genes = np.flatnonzero(tokens >= model.vocabulary.first_gene_token)
    found = {}
    for position in genes:
        left = max(split for split in splits if split <= position)
        right = min(split for split in splits if split >= position)
        along = 0 if left == right else (position - left) / (right - left)

        def by_gradients(place):
            return whole + moving[place + 1 :].sum()

        error = [exact[split] - by_gradients(split) for split in (left, right)]
        then = by_gradients(position) + (1 - along) * error[0] + along * error[1]
        reranking = then - whole
        removal = -(by_bias[position] + by_weight[position])
        found[int(position)] = (reranking + removal, reranking)
    return found
