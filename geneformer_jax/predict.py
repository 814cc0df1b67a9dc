"""Apply a fine-tuned model to new cells.

Examples:
  python -m geneformer_jax.predict --checkpoint=RUN/networks/Geneformer/fold_0 --cells=STORE \\
      --output=predicted.h5ad
  python -m geneformer_jax.predict --checkpoint=FOLD --cells=cells.h5ad --output=predicted.h5ad \\
      --label=cell_type
  python -m geneformer_jax.predict --checkpoint=GENE_FOLD --cells=STORE --output=genes.csv

--cells is a store written by `tokenize`, or a file of raw counts, which is tokenised with the
model's vocabulary. Of cells the output is AnnData in input order: `.obs["predicted_label"]`, its
probability, `.obsm["probabilities_label"]` with the columns `.uns["classes_label"]`; or all of that
as a .parquet or .csv table. Of genes it is a table of their mean over the cells that have them.
With --label predictions are compared with a column of known labels.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from geneformer_jax.common import command_line
from geneformer_jax.common.command_line import configuration
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import atomic_write
from geneformer_jax.common.provenance import describe_run

FLAGS = flags.FLAGS


flags.DEFINE_string("checkpoint", "", "Fine-tuned model: a fold's folder, or its model or adapter.")


flags.DEFINE_string("base", "", "For an adapter: the model it was trained on, if that has moved.")


flags.DEFINE_string("cells", "", "Cell store, or file of raw counts.")


flags.DEFINE_string("output", "", "File to write: .h5ad (of cells), .parquet or .csv.")


flags.DEFINE_string("label", "", "obs column of known labels, to compare the predictions with.")


flags.DEFINE_string("target", "", "Which of several targets --label is of; default: the first.")


flags.DEFINE_string("vocabulary", "", "Vocabulary folder, for a model that carries none.")


flags.DEFINE_string("precision", "float32", "float32, bfloat16 or float16.")


flags.DEFINE_string("attention", "auto", "Attention implementation; auto chooses for the device.")
_SUFFIXES = (".h5ad", ".parquet", ".csv")


def main() -> None:
    """Predicts, compares and writes."""
    command_line.require("checkpoint", "cells", "output")
    output = Path(FLAGS.output)
    if output.suffix not in _SUFFIXES:
        raise InputError(f"--output={output} must end in one of {', '.join(_SUFFIXES)}")
    if output.exists():
        raise InputError(f"--output={output} exists and nothing is overwritten; name another file")
    # JAX takes seconds to import, which --help and a mistyped flag should not have to wait for.
    from geneformer_jax.finetuning import predict
    from geneformer_jax.interop.load import load_model
    from geneformer_jax.model.runtime import RuntimeConfig

    model = load_model(FLAGS.checkpoint, FLAGS.vocabulary or None, base=FLAGS.base or None)
    runtime = RuntimeConfig(precision=FLAGS.precision, attention=FLAGS.attention)
    if model.head is not None and model.head.kind == "gene_classifier":
        if output.suffix == ".h5ad" or FLAGS.label:
            raise InputError(
                f"the model of {model.source} tells genes apart; write a .parquet or .csv table, "
                "without --label"
            )
        table = predict.predict_genes(model, FLAGS.cells, runtime)
        _write(table, output, {"genes": len(table)})
        print(f"predictions: {output} ({len(table):,} genes)")
        return
    predictor = predict.open_predictor(model, FLAGS.cells, runtime)
    if FLAGS.label:
        predict.check_labels(predictor.cells.obs, FLAGS.label, _target(model))
    predicted = predict.predict_cells(model, predictor.cells, runtime)
    if FLAGS.label:
        print("\n".join(predict.compare_with_labels(predicted, FLAGS.label, _target(model))))
    _write(predicted, output, {"cells": predicted.n_obs})
    print(f"predictions: {output} ({predicted.n_obs:,} cells)")


def _target(model: Any) -> Any:
    """The class target that --label is compared with."""
    targets = {task.name: task for task in model.head.outputs if not task.regression}
    if not targets:
        raise InputError("--label compares classes, but the model gives numbers only; leave it out")
    name = FLAGS.target or next(iter(targets))
    if name not in targets:
        raise InputError(f"--target={name} is no class target; use one of {', '.join(targets)}")
    return targets[name]


def _write(predicted: Any, output: Path, counts: dict[str, int]) -> None:
    story = describe_run("predict", configuration(), [FLAGS.cells], counts)
    text = json.dumps(story, indent=2, default=str) + "\n"
    with atomic_write(output.with_suffix(".provenance.json")) as aside:
        aside.write_text(text)
    with atomic_write(output) as aside:
        if output.suffix == ".h5ad":
            predicted.uns["provenance"] = text
            predicted.write_h5ad(aside)
            return
        table = predicted if counts.get("genes") is not None else _table(predicted)
        table.to_parquet(aside) if output.suffix == ".parquet" else table.to_csv(aside)


def _table(predicted: Any) -> Any:
    """obs and probabilities side by side."""
    import pandas as pd

    from geneformer_jax.finetuning.predict import CLASSES, PROBABILITIES

    parts = [predicted.obs]
    for name, probabilities in predicted.obsm.items():
        target = name.removeprefix(PROBABILITIES)
        columns = [f"probability_{target}_{label}" for label in predicted.uns[CLASSES + target]]
        parts.append(pd.DataFrame(probabilities, predicted.obs_names, columns))
    return pd.concat(parts, axis=1)


if __name__ == "__main__":
    command_line.run(main)
