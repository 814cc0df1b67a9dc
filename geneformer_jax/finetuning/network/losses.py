"""The losses of fine-tuning: cross-entropy of classes, squared error of numbers, or several."""

import jax
import jax.numpy as jnp
import optax

from geneformer_jax.batches.labelled import LabelledBatch
from geneformer_jax.model.heads import HeadConfig


def label_losses(
    head: HeadConfig, logits: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (losses, hits) of each target, float32 and shaped like `targets`.

    The loss of a class is its cross-entropy in nats; of a number the square of its error. A hit is
    1 where the class is ranked first; numbers have none.

    Args:
      head: what the logits are.
      logits: [..., C], all outputs of all tasks.
      targets: [..., K] class numbers or standardised values, one column a task.
    """
    losses, hits, start = [], [], 0
    for number, task in enumerate(head.outputs):
        own = logits[..., start : start + len(task.labels)]
        wanted = targets[..., number]
        start += len(task.labels)
        if task.regression:
            losses.append(jnp.square(own[..., 0] - wanted))
            hits.append(jnp.zeros_like(wanted))
        else:
            wanted = wanted.astype(jnp.int32)
            losses.append(optax.softmax_cross_entropy_with_integer_labels(own, wanted))
            hits.append((own.argmax(axis=-1) == wanted).astype(jnp.float32))
    return jnp.stack(losses, axis=-1), jnp.stack(hits, axis=-1)


def task_totals(batch: LabelledBatch) -> jax.Array:
    """Returns the weight of all targets of each task in a batch, [K]; 1 where there is none."""
    totals_K = batch.weights.reshape(-1, batch.weights.shape[-1]).sum(axis=0)
    return jnp.where(totals_K > 0, totals_K, 1.0)


def weighted_means(
    head: HeadConfig, values: jax.Array, weights: jax.Array, totals_K: jax.Array
) -> jax.Array:
    """Returns the mean over all tasks, by their weights, of their weighted means of `values`.

    Of a part of a batch: the parts sum to the mean of the whole.
    """
    weights_K = jnp.array([task.weight for task in head.outputs], jnp.float32)
    sums_K = (values * weights).reshape(-1, len(head.outputs)).sum(axis=0)
    return (weights_K / weights_K.sum() * sums_K / totals_K).sum()
