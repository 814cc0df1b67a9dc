#!/usr/bin/env bash
# cell-eval: scores of a model against a baseline need at least one metric that is an error.
#
# `score_agg_metrics` takes two tables of means, of a model and of a baseline, and puts each metric
# between the baseline and its best value (1 for correlations and discrimination, 0 for errors).
# Expected: a table of discrimination and overlap alone, which users ask for by choosing metrics, is
# scored, each by the distance to 1.
# Seen: IndexError; the numbers of the metrics whose best value is 0 are an empty list, which numpy
# makes an array of floats, and such an array is no index. With one error (mae) beside them the same
# columns are scored as expected. The same the other way round: errors alone.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "cell-eval==0.8.2"
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata

import polars as pl
from cell_eval import score_agg_metrics

print("cell-eval", importlib.metadata.version("cell-eval"))


def table(overlap, discrimination, mae):
    return pl.DataFrame(
        {
            "statistic": ["mean"],
            "overlap_at_N": [overlap],
            "discrimination_score_l1": [discrimination],
            "mae": [mae],
        }
    )


model, baseline = table(0.6, 0.7, 0.1), table(0.2, 0.5, 0.2)
scores = dict(score_agg_metrics(model, baseline).iter_rows())
print("with an error:", scores)
assert abs(scores["overlap_at_N"] - 0.5) < 1e-9 and abs(scores["mae"] - 0.5) < 1e-9
for left_out in (["mae"], ["overlap_at_N", "discrimination_score_l1"]):
    try:
        found = score_agg_metrics(model.drop(left_out), baseline.drop(left_out))
    except IndexError as error:
        print(f"without {', '.join(left_out)}: IndexError: {error}")
    else:
        raise SystemExit(f"scored without {left_out}: {found}")
PYTHON
