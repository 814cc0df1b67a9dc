"""The same work in PyTorch, with its own fused attention; imports no JAX."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from geneformer_jax.batches.config import MaskingConfig
from geneformer_jax.batches.loader import pad_cells
from geneformer_jax.batches.masking import MaskedCells, mask_cells
from geneformer_jax.model.config import EncoderConfig
from on_device.made_up import MadeUpCells, random_operands, real_lengths
from on_device.sizes import Sizes
from on_device.stages import Row
from on_device.timing import rates, warm_seconds

LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-3, 1e-3, 1.0
_SECONDS = 4.0


def attention(sizes: Sizes) -> Iterator[Row]:
    """Yields how many cells of full length its attention goes through in a second."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    for config, rows in zip((sizes.v1, sizes.v2), sizes.full_rows, strict=True):
        shape = rows, config.positions, config.heads, config.head_size
        arrays = (torch.from_numpy(x) for x in random_operands(shape, "float32"))
        dtype = getattr(torch, sizes.precision)
        # Heads before positions, as it wants them.
        q, k, v, d_out = (x.to(_device(), dtype).transpose(1, 2).contiguous() for x in arrays)
        inputs = [x.requires_grad_() for x in (q, k, v)]

        def forward(q=q, k=k, v=v) -> None:
            with torch.no_grad():
                scaled_dot_product_attention(q, k, v)
            _wait()

        def with_gradients(q=q, k=k, v=v, d_out=d_out, inputs=inputs) -> None:
            torch.autograd.grad(scaled_dot_product_attention(q, k, v), inputs, d_out)
            _wait()

        for what, run in (("forward", forward), ("with gradients", with_gradients)):
            run()
            seconds = warm_seconds(run, 1.0, repeats=20)
            yield rates(f"SDPA, {shape}, {what}", "cells/s", rows, seconds)


def train(sizes: Sizes) -> Iterator[Row]:
    """Yields the speed of training steps on cells of full length."""
    models = ("V1-10M", sizes.v1), ("V2-104M", sizes.v2)
    for (name, encoder), rows in zip(models, sizes.full_rows, strict=True):
        cells = MadeUpCells(np.full(rows, encoder.positions), encoder.vocabulary_size)
        numbers = np.arange(rows)
        masked = mask_cells(
            pad_cells(cells.read(numbers), encoder.positions, cells.vocabulary.pad_id),
            cells.lengths, numbers, seed=0, step=0, config=MaskingConfig(),
            vocabulary=cells.vocabulary,
        )  # fmt: skip
        for masked_only in (True, False):
            step = training_step(
                encoder, half=sizes.precision == "bfloat16", masked_only=masked_only
            )
            labels = labels_of(masked)

            def run(step=step, masked=masked, lengths=cells.lengths, labels=labels) -> None:
                for _ in range(sizes.steps):
                    step(masked.tokens_BT, lengths, labels)
                _wait()

            run()
            seconds = warm_seconds(run, _SECONDS)
            head = "head on masked genes" if masked_only else "head on all genes"
            what = f"{name}, {rows} x {encoder.positions:,} tokens, {head}"
            yield rates(what, "cells/s", rows * sizes.steps, seconds, precision=sizes.precision)


def embed(sizes: Sizes) -> Iterator[Row]:
    """Yields how fast cells are embedded, sorted by length and padded to the longest of a batch."""
    import torch

    for name, config in (("V1-10M", sizes.v1), ("V2-104M", sizes.v2)):
        lengths = real_lengths(sizes.embedded, config.positions)
        cells = MadeUpCells(lengths, config.vocabulary_size)
        order = np.argsort(-lengths, kind="stable")
        model = bert(config).bert.eval().to(_device(), getattr(torch, sizes.precision))

        @torch.inference_mode()
        def run(model=model, cells=cells, order=order) -> None:
            for start in range(0, len(order), sizes.embedded_batch):
                chosen = order[start : start + sizes.embedded_batch]
                longest = int(cells.lengths[chosen].max())
                tokens = torch.from_numpy(pad_cells(cells.read(chosen), longest, 0))
                mask = torch.from_numpy(np.arange(longest) < cells.lengths[chosen, None])
                mask = mask.to(_device())
                hidden = model(
                    tokens.to(_device()), attention_mask=mask.long(), output_hidden_states=True
                ).hidden_states[-2]
                weights = mask[..., None].float()
                ((hidden * weights).sum(1) / weights.sum(1)).float().cpu()

        run()
        seconds = warm_seconds(run, _SECONDS, repeats=3)
        what = f"{name}, {len(cells):,} cells"
        yield rates(
            what, "cells/s", len(cells), seconds, precision=sizes.precision,
            batch=sizes.embedded_batch,
        )  # fmt: skip


def bert(encoder: EncoderConfig) -> Any:
    """Returns transformers' BertForMaskedLM of a shape with random weights and SDPA attention."""
    from transformers import BertConfig, BertForMaskedLM

    shape = BertConfig(
        vocab_size=encoder.vocabulary_size,
        hidden_size=encoder.width,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.feed_forward,
        max_position_embeddings=encoder.positions,
        hidden_act="relu",
        layer_norm_eps=encoder.layer_norm_eps,
        hidden_dropout_prob=encoder.dropout,
        attention_probs_dropout_prob=encoder.attention_dropout,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    return BertForMaskedLM(shape)


def training_step(
    encoder: EncoderConfig, *, half: bool, masked_only: bool, compiled: str = ""
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], Any]:
    """Returns a step of tokens, lengths and labels, which gives its loss.

    Args:
      encoder: shape of the model, whose weights are random.
      half: whether products are made in bfloat16.
      masked_only: logits of masked genes only; else of all, as the original has them.
      compiled: "static" or "dynamic" compiles the loss for one shape, or for all.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    device = _device()
    model = bert(encoder).train().to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )

    def loss_of(ids, mask, labels):
        if not masked_only:
            return model(ids, attention_mask=mask, labels=labels).loss
        hidden = model.bert(ids, attention_mask=mask).last_hidden_state
        chosen = labels >= 0
        return torch.nn.functional.cross_entropy(model.cls(hidden[chosen]), labels[chosen])

    if compiled:
        loss_of = torch.compile(loss_of, dynamic=compiled == "dynamic")

    def step(tokens: np.ndarray, lengths: np.ndarray, labels: np.ndarray) -> Any:
        ids = torch.from_numpy(tokens.astype(np.int64)).to(device)
        mask = torch.from_numpy((np.arange(tokens.shape[1]) < lengths[:, None]) * 1).to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            loss = loss_of(ids, mask, torch.from_numpy(labels).to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def labels_of(masked: MaskedCells) -> np.ndarray:
    """Returns the masked genes where they stood, int64 [B, T], and -100 elsewhere."""
    labels = np.full(masked.tokens_BT.shape, -100, np.int64)
    rows, places = np.nonzero(masked.weights_BM)
    labels[rows, masked.positions_BM[rows, places]] = masked.targets_BM[rows, places]
    return labels


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
